"""Nothing is answered before a request can be served, so that who waits for an answer waits for
that: until then all but `/live` is 503, which the other probes say by themselves."""

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.access import PROBES
from server.http.errors import SERVER_ERROR, ErrorReport

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Loading · MegaInfer</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>body{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;min-height:90vh}
@media(prefers-color-scheme:dark){body{background:#151412;color:#ece7de}}</style>
<p role="status">The model is being loaded; this page opens when it is ready.</p></html>"""
PAGE_HEADERS = {
    "Refresh": "1",
    "Retry-After": "1",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
}


class Opening:
    """ASGI: passes everything on once the engine has been able to serve, for good.

    problem: why the engine can't, in words for anybody, or None.
    """

    def __init__(self, app: ASGIApp, problem: Callable[[], str | None]) -> None:
        self._app = app
        self._problem = problem
        self._is_open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_open or scope["path"] in PROBES or self._opens():
            await self._app(scope, receive, send)
        elif scope["path"] == "/" and "text/html" in Headers(scope=scope).get("accept", ""):
            await HTMLResponse(PAGE, 503, PAGE_HEADERS)(scope, receive, send)
        else:
            await self._report().response(scope["path"])(scope, receive, send)

    def _opens(self) -> bool:
        self._is_open = self._problem() is None
        return self._is_open

    def _report(self) -> ErrorReport:
        message = f"the server isn't ready: {self._problem()}; try again in a moment"
        return ErrorReport(503, message, SERVER_ERROR, code="loading")
