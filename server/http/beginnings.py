"""When requests are begun: by turns of clients, a few in each round of the event loop.

To read a request, check it and send it off is a millisecond's work or more, without a pause. Of
hundreds that come at once, all would be begun before anybody else is heard. One that takes much
longer than that lets its client rest, in proportion.
"""

import asyncio

from megainfer.sharing.fair_queue import FairQueue
from megainfer.sharing.rests import Rests

A_ROUND = 4.0
"""Small requests that are begun before others are heard; a large one counts as several."""
SMALL_BYTES = 2**14
HELD_SECONDS = 0.005
"""Of CPU time: who keeps others waiting for longer, at once, rests afterwards."""
READ_SECONDS = 2e-9
"""To take in a byte; a body comes in hundreds of pieces, each of which takes little."""


class Beginnings:
    """Who has had less begun is next, of those who don't rest. A request waits only where others
    were begun in this round of the event loop, or where its client rests."""

    def __init__(self, rests: Rests | None = None) -> None:
        self._rests = rests or Rests()
        self._queue: FairQueue[tuple[asyncio.Future[None], float]] = FairQueue()
        self._left = A_ROUND
        self._next_round: asyncio.Handle | None = None
        self._end_of_rest: asyncio.TimerHandle | None = None  # all who wait do so for that

    async def turn(self, client: str, size: int = 0) -> None:
        """Come back when a request may be begun, or a large body be read: of so many bytes, which
        are there."""
        work = 1 + size / SMALL_BYTES
        others_wait = len(self._queue) > 0 and self._end_of_rest is None
        if self._left > 0 and not others_wait and self._rests.may(client):
            self._spend(client, work)
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(client, (waiting, work))
        self._look_again()
        try:
            await waiting
        except asyncio.CancelledError:
            self._queue.remove(client, (waiting, work))
            raise

    def held(self, client: str, seconds: float) -> None:
        """What was done for it took so much CPU time at once."""
        if seconds > HELD_SECONDS:
            self._rests.note(client, seconds)

    async def taken_in(self, client: str, size: int) -> None:
        """So many bytes more of a large body have come; come back when the next may."""
        self._rests.note(client, size * READ_SECONDS)
        while seconds := self._rests.left(client):
            await asyncio.sleep(seconds)

    def _spend(self, client: str, work: float) -> None:
        self._queue.charge(client, work)
        self._left -= work
        if self._next_round is None:
            self._next_round = asyncio.get_running_loop().call_soon(self._begin_round)

    def _begin_round(self) -> None:
        self._next_round, self._left = None, A_ROUND
        while self._left > 0 and (following := self._queue.pop(self._rests.may)) is not None:
            client, (waiting, work) = following
            if not waiting.done():
                waiting.set_result(None)
                self._spend(client, work)
        self._look_again()

    def _look_again(self) -> None:
        """In the next round, or once somebody's rest has ended where all who wait rest."""
        if self._end_of_rest is not None:
            self._end_of_rest.cancel()
            self._end_of_rest = None
        if self._queue and self._next_round is None:
            seconds = self._rests.soonest(self._queue.clients)
            loop = asyncio.get_running_loop()
            self._end_of_rest = loop.call_later(seconds, self._begin_round)
