"""Who may call what: a key for all but probes and the page's files, another for the inside; and
without any key, who may pass for this machine."""

from collections.abc import Collection
from enum import Enum

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from megainfer.frontend.serving_options import ServingOptions
from server.http.client import address_of, client_of, current_client
from server.http.errors import ErrorReport
from server.http.guesses import Guesses
from server.http.hosts import host_name, refuse_host
from server.http.keys import Keys, digest

PROBES = frozenset({"/live", "/health", "/ping", "/ready"})
ROLLOUTS = (
    *("/update_weights", "/init_weight", "/destroy_weights_update_group", "/get_world_size"),
    *("/pause", "/resume", "/continue_generation", "/is_paused"),
)
"""What trainers ask; the first part of an address, as in ADMIN."""
ADMIN = ("/server_info", "/debug/", "/admin/", *ROLLOUTS)
KEY_NAME = 16
"""Hexadecimal digits of its digest by which a key is told from others."""
METRICS = "/metrics"
LOOKING = "/page/"
"""And METRICS: what tells of everybody's requests: an administrator's where there is one."""
NEEDS_ADMIN = ErrorReport(
    403,
    "this address needs an admin key, and the key that was sent is an API key",
    code="needs_admin_key",
)


class Access(Enum):
    OPEN = "open"
    KEY = "key"
    INSIDE = "inside"
    ADMIN = "admin"


def access_to(path: str, files: Collection[str] = (), public_metrics: bool = False) -> Access:
    """What an address asks for, if these are the page's. One that nobody thought of asks for a
    key."""
    if path in PROBES or path in files or (public_metrics and path == METRICS):
        return Access.OPEN
    if path.startswith(ADMIN):
        return Access.ADMIN
    if path == METRICS or path.startswith(LOOKING):
        return Access.INSIDE
    return Access.KEY


class AccessControl:
    """ASGI: passes on what may be done, and answers the rest.

    files: addresses of files without secrets.
    """

    def __init__(
        self, app: ASGIApp, options: ServingOptions, keys: Keys, files: Collection[str] = ()
    ) -> None:
        self._app = app
        self._files = files
        self._keys = keys
        self._loopback = options.loopback
        self._public_metrics = options.public_metrics
        self._hosts = {host_name(host) for host in options.allowed_hosts}
        self._origins = frozenset(options.allowed_origins)
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        key = _given_key(headers)
        report = self._refusal(scope["path"], headers, key)
        if report is None:
            name = digest(key).hex()[:KEY_NAME] if self._keys.asked and key else None
            current_client.set(client_of(scope, name))
            await self._app(scope, receive, send)
            return
        response = report.response(scope["path"])
        if report.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
            if key:
                await self._guesses.slow_down(address_of(scope.get("client")))
        await response(scope, receive, send)

    def _refusal(self, path: str, headers: Headers, key: str) -> ErrorReport | None:
        access = access_to(path, self._files, self._public_metrics)
        if access is Access.OPEN:
            return None
        if (
            self._loopback
            and not self._keys.asked
            and (report := refuse_host(headers.get("host", ""), self._hosts))
        ):
            return report
        if access is not Access.KEY and self._is_another_pages(headers):
            message = "a web page from elsewhere asked for this; open the address itself, or start "
            return ErrorReport(
                403, f"{message}the server with --allowed-origins", code="cross_site_request"
            )
        if access is Access.ADMIN:
            return self._refuse_admin(key)
        if not self._keys.asked:
            return None
        if self._keys.admin.opens(key):
            return None
        if access is Access.INSIDE and self._keys.admin:
            return self._not_an_admins(key)
        return None if self._keys.api.opens(key) else _unauthorized(key)

    def _is_another_pages(self, headers: Headers) -> bool:
        """Whether a browser says that another site's page asks: an image's address needs neither
        that page's origin nor its consent. Who can't be a browser says nothing."""
        if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return False
        return not self._origins & {"*", headers.get("origin", "")}

    def _not_an_admins(self, key: str) -> ErrorReport:
        return NEEDS_ADMIN if self._keys.api.opens(key) else _unauthorized(key)

    def _refuse_admin(self, key: str) -> ErrorReport | None:
        if self._keys.admin:
            if self._keys.admin.opens(key):
                return None
            return self._not_an_admins(key)
        if self._loopback and not self._keys.api:
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
