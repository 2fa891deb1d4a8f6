"""Wrong keys: each address may send some, and has to wait for the answers to more."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from megainfer.instruments.seldom import Seldom

FREE = 10
"""Wrong keys of an address that are answered at once, and again so many after FORGET_SECONDS."""
FORGET_SECONDS = 60.0
WAIT_SECONDS = 1.0
MAX_ADDRESSES = 4096
log = logging.getLogger(__name__)
log.addFilter(Seldom())


class Guesses:
    """Counts wrong keys by address. The right one is never kept waiting, so nobody can be locked
    out by who shares an address; each guess beyond some keeps its connection for a second."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many

    def note(self, address: str) -> float:
        """One more came from there; seconds that it has to wait for its answer."""
        now = self._clock()
        since, count = self._wrong.pop(address, (now, 0))
        if now - since > FORGET_SECONDS:
            since, count = now, 0
        self._wrong[address] = since, count + 1
        if len(self._wrong) > MAX_ADDRESSES:
            self._wrong.popitem(last=False)
        return WAIT_SECONDS if count >= FREE else 0.0

    async def slow_down(self, address: str) -> None:
        """Wait for as long as it has to, and leave a line in the log."""
        if seconds := self.note(address):
            log.warning("wrong keys come from %s, and are answered slowly", address)
            await asyncio.sleep(seconds)
