"""Long loops on an event loop, that let others have their turn now and then."""

import asyncio
from time import monotonic

WORK_SECONDS = 0.005


class Pauses:
    """`take` in each round: once WORK_SECONDS have gone by since the last pause, others are heard.

    What is awaited in such a loop may be there already, and then nobody else is heard in between.
    """

    def __init__(self) -> None:
        self._since = monotonic()

    async def take(self) -> None:
        """Let others have their turn, if it is time to."""
        if monotonic() - self._since >= WORK_SECONDS:
            await asyncio.sleep(0)
            self._since = monotonic()
