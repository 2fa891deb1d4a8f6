"""When requests are begun: by turns of clients, a few in each round of the event loop.

To read a request, check it and send it off is a millisecond's work or more, without a pause. Of
hundreds that come at once, all would be begun before anybody else is heard.
"""

import asyncio

from megainfer.sharing.fair_queue import FairQueue

A_ROUND = 4.0
"""Small requests that are begun before others are heard; a large one counts as several."""
SMALL_BYTES = 2**14


class Beginnings:
    """Who has had less begun is next. A request waits only where others were begun in this round
    of the event loop."""

    def __init__(self) -> None:
        self._queue: FairQueue[tuple[asyncio.Future[None], float]] = FairQueue()
        self._left = A_ROUND
        self._next_round: asyncio.Handle | None = None

    async def turn(self, client: str, size: int) -> None:
        """Come back when the request may be begun. size: of its body, in bytes."""
        work = 1 + size / SMALL_BYTES
        if self._left > 0 and not self._queue:
            self._spend(client, work)
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(client, (waiting, work))
        try:
            await waiting
        except asyncio.CancelledError:
            self._queue.remove(client, (waiting, work))
            raise

    def _spend(self, client: str, work: float) -> None:
        self._queue.charge(client, work)
        self._left -= work
        if self._next_round is None:
            self._next_round = asyncio.get_running_loop().call_soon(self._begin_round)

    def _begin_round(self) -> None:
        self._next_round, self._left = None, A_ROUND
        while self._left > 0 and (following := self._queue.pop()) is not None:
            client, (waiting, work) = following
            if not waiting.done():
                waiting.set_result(None)
                self._spend(client, work)
