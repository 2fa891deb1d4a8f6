"""What takes too long for the event loop: on a few threads, by turns, for as long as its client is
there."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from megainfer.sharing.turns import Turns
from server.http.client import current_client
from server.http.connection import while_client_stays

Result = TypeVar("Result")
INLINE_CHARACTERS = 2048  # encoding this many takes about as long as changing threads twice
UNKNOWN_SIZE = INLINE_CHARACTERS + 1  # of what may be long
THREADS = 2
MAX_WAITING = 256


class LongWork:
    """Texts to encode, and the like. What a client who has hung up waited for isn't begun."""

    def __init__(self) -> None:
        self._turns = Turns(THREADS, MAX_WAITING, "long texts")
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="long-work")

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """size: in characters, tokens or the like. Raises what `work` raises, Overloaded where too
        much waits, ClientGone."""
        if size <= INLINE_CHARACTERS:
            return work()
        return await while_client_stays(self._by_turns(size, work))

    async def _by_turns(self, size: int, work: Callable[[], Result]) -> Result:
        async with self._turns.turn(current_client.get(), size):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
