"""What a server says of itself before it is measured."""

from collections.abc import Mapping
from typing import Any

import httpx

from megainfer.errors import MegaInferError

SECONDS = 30.0


class ServerFacts:
    """Asks; close it in the end. url: scheme and host, without a path."""

    def __init__(self, url: str, headers: Mapping[str, str], verify_tls: bool = True) -> None:
        self.url = url
        self.http = httpx.Client(
            base_url=url, headers=dict(headers), timeout=SECONDS, verify=verify_tls, trust_env=False
        )

    def close(self) -> None:
        self.http.close()

    def first_model(self) -> str:
        """The first model that /v1/models lists. Raises MegaInferError."""
        try:
            response = self.http.get("/v1/models")
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
        except httpx.ConnectError as error:
            raise MegaInferError(
                f"no server answers at {self.url}; say where it is with --base-url, or --host and "
                "--port"
            ) from error
        except httpx.HTTPStatusError as error:
            raise MegaInferError(
                f"{self.url}/v1/models answers {error.response.status_code}: "
                f"{error.response.text[:200]}"
            ) from error
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise MegaInferError(
                f"{self.url}/v1/models gives no model ({error!r}); name it with --model"
            ) from error

    def info(self) -> dict[str, Any]:
        """/server_info, empty where the server has none: only MegaInfer's is understood."""
        try:
            response = self.http.get("/server_info")
            found = response.json() if response.is_success else {}
        except (httpx.HTTPError, ValueError):
            return {}  # others needn't have it
        return found if isinstance(found, dict) else {}


def whole_number_in(info: Mapping[str, Any], name: str) -> int | None:
    """A positive whole number of this name, at the top or one level below."""
    nested = [value for value in info.values() if isinstance(value, dict)]
    for place in (info, *nested):
        value = place.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
