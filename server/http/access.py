"""Who may call what: a key for all but probes and the page's files, another for the inside; and
without any key, who may pass for this machine."""

import hmac
from collections.abc import Collection, Sequence
from enum import Enum
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from megainfer.frontend.serving_options import ServingOptions
from server.http.errors import ErrorReport
from server.http.hosts import host_name, refuse_host

PROBES = frozenset({"/live", "/health", "/ping", "/ready"})
ADMIN = ("/server_info", "/debug/", "/admin/")
METRICS = "/metrics"


class Access(Enum):
    OPEN = "open"
    KEY = "key"
    ADMIN = "admin"


def access_to(path: str, files: Collection[str] = (), public_metrics: bool = False) -> Access:
    """What an address asks for, if these are the page's. One that nobody thought of asks for a
    key."""
    if path in PROBES or path in files or (public_metrics and path == METRICS):
        return Access.OPEN
    if path.startswith(ADMIN):
        return Access.ADMIN
    return Access.KEY


class KeyRing:
    """Several keys, compared in a time that tells nothing of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def opens(self, key: str) -> bool:
        """Whether it is one of them; every one is compared, whatever the others gave."""
        given = _digest(key)
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


class AccessControl:
    """ASGI: passes on what may be done, and answers the rest.

    files: addresses of files without secrets.
    """

    def __init__(self, app: ASGIApp, options: ServingOptions, files: Collection[str] = ()) -> None:
        self._app = app
        self._files = files
        self._keys = KeyRing(options.api_keys)
        self._admin_keys = KeyRing(options.admin_keys)
        self._loopback = options.loopback
        self._public_metrics = options.public_metrics
        self._checks_host = options.loopback and not options.asks_for_key
        self._hosts = {host_name(host) for host in options.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        report = self._refusal(scope)
        if report is None:
            await self._app(scope, receive, send)
            return
        response = report.response(scope["path"])
        if report.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> ErrorReport | None:
        access = access_to(scope["path"], self._files, self._public_metrics)
        if access is Access.OPEN:
            return None
        headers = Headers(scope=scope)
        if self._checks_host and (report := refuse_host(headers.get("host", ""), self._hosts)):
            return report
        key = _given_key(headers)
        if access is Access.ADMIN:
            return self._refuse_admin(key)
        if not self._keys and not self._admin_keys:
            return None
        if self._keys.opens(key) or self._admin_keys.opens(key):
            return None
        return _unauthorized(key)

    def _refuse_admin(self, key: str) -> ErrorReport | None:
        if self._admin_keys:
            return None if self._admin_keys.opens(key) else _unauthorized(key)
        if self._loopback and not self._keys:
            return None
        message = "this address is for administrators, and the server was started without a key "
        return ErrorReport(403, f"{message}for them; use --admin-key", code="no_admin_key")


def _given_key(headers: Headers) -> str:
    """As OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "")


def _unauthorized(key: str) -> ErrorReport:
    if not key:
        message = "this server asks for a key; send it as Authorization: Bearer KEY"
    else:
        message = "the key that was sent isn't one of this server's"
    return ErrorReport(401, message, code="invalid_api_key")


def _digest(key: str) -> bytes:
    return sha256(key.encode("latin-1", "replace")).digest()
