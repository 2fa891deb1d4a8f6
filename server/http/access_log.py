"""A line for every request that was answered, for those who ask for it."""

import logging
from time import monotonic

from starlette.types import Scope

log = logging.getLogger("megainfer.access")


def describe_request(scope: Scope) -> str:
    """Whose, and what: without its query, in which there might be a secret."""
    host, port = scope.get("client") or ("?", 0)
    # As it was sent: what is decoded may hold line ends.
    path = scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "backslashreplace")
    return f"{host}:{port} {scope['method']} {path}"


def log_access(scope: Scope, status: int | None, began: float) -> None:
    """status: None where the client hung up before there was one."""
    log.info("%s %s %.3f s", describe_request(scope), status or "-", monotonic() - began)
