"""Which requests are taken in: all until the server drains, then none; and how many are inside."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.beginnings import Beginnings
from server.http.client import current_client
from server.http.connection import current_receive
from server.http.errors import SERVER_ERROR, ErrorReport

DRAINING = "the server is about to end and takes no new requests; try another, or again later"


class Occupancy:
    """`in_flight`: requests for work that are being answered, streams to their end."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def entered(self) -> None:
        self.in_flight += 1
        self._empty.clear()

    def left(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._empty.set()

    async def drain(self) -> None:
        """Take nothing new, and wait until nobody is inside."""
        self.draining = True
        await self._empty.wait()


class Entrance:
    """ASGI: counts requests for work (POST) in and out, and refuses them while the server drains.
    Their clients take turns.

    What only looks goes on being answered.
    """

    def __init__(self, app: ASGIApp, occupancy: Occupancy) -> None:
        self._app = app
        self._occupancy = occupancy
        self._beginnings = Beginnings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._occupancy.draining:
            report = ErrorReport(503, DRAINING, SERVER_ERROR, code="draining")
            await report.response(scope["path"])(scope, receive, send)
            return
        self._occupancy.entered()
        current_receive.set(receive)
        try:
            size = int(dict(scope["headers"]).get(b"content-length", 0))
            await self._beginnings.turn(current_client.get(), size)
            await self._app(scope, receive, send)
        finally:
            self._occupancy.left()
