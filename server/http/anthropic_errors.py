"""How Anthropic's API tells an error, and at which addresses."""

from typing import Any

PREFIX = "/v1/messages"
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def speaks_at(path: str) -> bool:
    """Whether the address is one of this API's."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def error_object(status: int, message: str) -> dict[str, Any]:
    """What an error's event or body holds as `error`."""
    unlisted = "invalid_request_error" if 400 <= status < 500 else "api_error"
    return {"type": TYPES.get(status, unlisted), "message": message}


def error_body(status: int, message: str) -> dict[str, Any]:
    """A whole answer's body."""
    return {"type": "error", "error": error_object(status, message)}
