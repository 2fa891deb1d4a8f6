"""What the commands for administrators ask a running server."""

from typing import Any

from megainfer.commands.bearer import bearer
from megainfer.errors import MegaInferError

DEFAULT_URL = "http://127.0.0.1:8000"


def ask(
    method: str,
    url: str,
    path: str,
    admin_key: str | None,
    timeout: float,
    *,
    params: dict[str, Any] | None = None,
    body: Any = None,
) -> bytes:
    """The body of a good answer. timeout: seconds. Raises MegaInferError, with the reason."""
    import httpx

    headers = bearer("--admin-key", admin_key)
    try:
        response = httpx.request(
            method,
            f"{url.rstrip('/')}{path}",
            params=params,
            json=body,
            headers=headers,
            timeout=timeout,
            trust_env=False,
        )
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise MegaInferError(f"{url} can't be asked for {path}: {error}") from error
    if response.status_code != 200:
        raise MegaInferError(f"{url} refuses {path}: {_reason(response.text)}")
    return response.content


def _reason(text: str) -> str:
    import msgspec

    try:
        return str(msgspec.json.decode(text)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"{text!r:.200}"
