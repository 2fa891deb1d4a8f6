"""The server that is measured, and what every request to it has in common, from options."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megainfer.bench.client import Target
from megainfer.commands.bearer import bearer
from megainfer.commands.bench.serve_options import SamplingOptions, ServerOptions
from megainfer.errors import ConfigError

ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}


def server_url(server: ServerOptions) -> str:
    """Scheme, host and port."""
    if server.base_url is not None:
        if not server.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"--base-url must begin with http:// or https://: {server.base_url}")
        return server.base_url.rstrip("/")
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"http://{host}:{server.port}"


def request_headers(server: ServerOptions) -> dict[str, str]:
    """Of every request; the API key among them. Raises ConfigError."""
    further = name_value_pairs("--header", server.header)
    for name, value in further.items():
        if not (name + value).isascii():
            raise ConfigError(f"--header takes ASCII characters, and {name!r} has others")
    return bearer("--api-key", server.api_key) | further


def name_value_pairs(flag: str, texts: Sequence[str] | None) -> dict[str, str]:
    """Of `NAME=VALUE`. Raises ConfigError, which names the flag."""
    pairs = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not name.strip() or not separator:
            raise ConfigError(f"{flag} takes NAME=VALUE, not {text!r}")
        pairs[name.strip()] = value.strip()
    return pairs


def make_target(
    server: ServerOptions, sampling: SamplingOptions, url: str, model: str, headers: dict[str, str]
) -> Target:
    """Raises ConfigError."""
    if server.backend not in ENDPOINTS:
        raise ConfigError(f"--backend must be {' or '.join(ENDPOINTS)}, not {server.backend!r}")
    fields = {name: value for name, value in asdict(sampling).items() if value not in (None, False)}
    return Target(
        url=url + (server.endpoint or ENDPOINTS[server.backend]),
        model=model,
        chat=server.backend == "openai-chat",
        headers=headers,
        body={**fields, **_extra_body(server.extra_body)},
        silence_seconds=server.request_timeout_sec,
        verify_tls=not server.insecure,
    )


def _extra_body(text: str | None) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--extra-body isn't JSON: {error}") from error
    if not isinstance(extra, dict):
        raise ConfigError(f"--extra-body must be a JSON object, not {text!r}")
    return extra
