"""Which requests are taken in: all until the server drains, then none; and how many are inside."""

import asyncio
from collections.abc import Callable
from time import monotonic

from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.beginnings import Beginnings
from server.http.client import current_client
from server.http.connection import current_receive
from server.http.errors import SERVER_ERROR, ErrorReport

DRAINING = "the server is about to end and takes no new requests; try another, or again later"


RECENT_SECONDS = 1.0
"""For so long who was answered is thought to come again: most ask one thing after the other."""
MOST_LEFT = 1024


class Occupancy:
    """`in_flight`: requests for work that are being answered, streams to their end."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.in_flight = 0
        self.draining = False
        self._clock = clock
        self._inside: dict[str, int] = {}  # requests, by client
        self._left_at: dict[str, float] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def entered(self, client: str = "") -> None:
        self.in_flight += 1
        self._inside[client] = self._inside.get(client, 0) + 1
        self._empty.clear()

    def left(self, client: str = "") -> None:
        self.in_flight -= 1
        if (remaining := self._inside[client] - 1) > 0:
            self._inside[client] = remaining
        else:
            del self._inside[client]
            self._left_at[client] = self._clock()
            if len(self._left_at) > MOST_LEFT:
                self._left_at = self._lately()
        if not self.in_flight:
            self._empty.set()

    def others(self, client: str) -> bool:
        """Whether anybody else is inside, or was lately."""
        if len(self._inside) > (client in self._inside):
            return True
        return bool(self._lately().keys() - {client})

    def _lately(self) -> dict[str, float]:
        since = self._clock() - RECENT_SECONDS
        return {client: at for client, at in self._left_at.items() if at > since}

    async def drain(self) -> None:
        """Take nothing new, and wait until nobody is inside."""
        self.draining = True
        await self._empty.wait()


class Entrance:
    """ASGI: counts requests for work (POST) in and out, and refuses them while the server drains.
    Their clients take turns.

    What only looks goes on being answered.
    """

    def __init__(self, app: ASGIApp, occupancy: Occupancy, beginnings: Beginnings) -> None:
        self._app = app
        self._occupancy = occupancy
        self._beginnings = beginnings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._occupancy.draining:
            report = ErrorReport(503, DRAINING, SERVER_ERROR, code="draining")
            await report.response(scope["path"])(scope, receive, send)
            return
        client = current_client.get()
        self._occupancy.entered(client)
        current_receive.set(receive)
        try:
            await self._beginnings.turn(client)
            await self._app(scope, receive, send)
        finally:
            self._occupancy.left(client)
