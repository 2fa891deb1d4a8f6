"""The files that the page consists of. They hold no secrets, so they ask for no key.

A browser can't send a key when it opens an address; the page asks for one and sends it with all
that it fetches from the API.
"""

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response

FILES = (
    *("page.css", "icon.svg", "main.js", "dom.js", "api.js", "key.js", "tabs.js"),
    *("chat.js", "answer.js", "talk.js", "settings.js", "markdown.js", "inline.js"),
    *("live.js", "history.js", "nodes.js", "timeline.js", "spans.js", "heatmap.js"),
    *("placement.js", "slot_map.js", "expert_tokens.js", "events.js", "terms.js"),
    *("curves.js", "canvas.js", "format.js"),
)
PAGE = {"/": "index.html", **{f"/static/{name}": name for name in FILES}}
"""Every address of the page, and its file in `server/static`."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",  # ask each time, and be told that nothing changed
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file in memory; its ETag changes with its content."""

    body: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 to whoever has it already."""
        headers = {**HEADERS, "ETag": self.etag}
        if has_already(request, self.etag):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers={**headers, "Content-Type": self.media_type})


def load_asset(name: str) -> Asset:
    """A file of `server/static`."""
    body = (files("server") / "static" / name).read_bytes()
    return Asset(body, MEDIA_TYPES[PurePath(name).suffix], f'"{sha256(body).hexdigest()[:32]}"')


def has_already(request: Request, etag: str) -> bool:
    """Whether the client says that it has this; a weak ETag names the same content here."""
    tags = request.headers.get("if-none-match", "").split(",")
    return etag in [tag.strip().removeprefix("W/") for tag in tags]
