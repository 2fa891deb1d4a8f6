"""Taking turns at something that only few can use at a time, on one event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from megainfer.errors import Overloaded
from megainfer.sharing.fair_queue import FairQueue
from megainfer.sharing.rests import Rests


class Turns:
    """`places` clients at a time; who has had the least goes first. most: how many may wait; of one
    client half of those that others leave. what: they wait for, in the plural. rests: who rests is
    given no turn."""

    def __init__(self, places: int, most: int, what: str, rests: Rests | None = None) -> None:
        self._free = places
        self._most = most
        self._what = what
        self._rests = rests or Rests()
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self._end_of_rest: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    def charge(self, client: str, work: float) -> None:
        """Its turn has cost so much more than was thought."""
        self._queue.charge(client, work)

    @asynccontextmanager
    async def turn(self, client: str, work: float = 1.0) -> AsyncIterator[None]:
        """Wait for one, and have it. work: what it costs, in any unit. Who is cancelled waits no
        longer. Raises Overloaded when too many wait."""
        if self._free and self._rests.may(client):
            self._free -= 1
        else:
            await self._wait(client)
        self._queue.charge(client, work)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        own = self._queue.count(client)
        if 2 * own >= self._most - (len(self._queue) - own):
            raise Overloaded(
                f"{len(self._queue)} {self._what} are waiting, {own} of them yours; try again later"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(client, turn)
        self._look_again()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it was given just when it was cancelled
                self._pass_on()
            else:
                self._queue.remove(client, turn)
            raise

    def _pass_on(self) -> None:
        while (following := self._queue.pop(self._rests.may)) is not None:
            if not following[1].done():
                following[1].set_result(None)
                return
        self._free += 1
        self._look_again()

    def _look_again(self) -> None:
        """Once somebody's rest has ended, where there are places and all who wait rest."""
        if self._end_of_rest is not None:
            self._end_of_rest.cancel()
            self._end_of_rest = None
        if self._free and self._queue:
            seconds = self._rests.soonest(self._queue.clients)
            loop = asyncio.get_running_loop()
            self._end_of_rest = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._end_of_rest = None
        for _ in range(min(self._free, len(self._queue))):
            self._free -= 1
            self._pass_on()
