"""A process that does what may cost too much, and is replaced when it dies of it.

Frames on both of its pipes: the length in 4 bytes, little-endian, then the bytes. The other half is
`helper_frames`.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

from megainfer.errors import MegaInferError, Overloaded
from megainfer.helper_frames import LENGTH_BYTES, framed


class HelperDied(MegaInferError):
    """The question cost more than it may."""


class HelperProcess:
    """`python -m MODULE ARGUMENTS`, which answers each frame by one, and starts with the first.

    hello: the frame that it is sent before any question. max_waiting: questions that wait while
    another is asked.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], hello: bytes, max_waiting: int
    ) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._hello = framed(hello)
        self._max_waiting = max_waiting
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._asking: set[asyncio.Task[bytes]] = set()

    async def prepare(self) -> None:
        """Start it now, so that the first question doesn't wait for that."""
        async with self._turn:
            self._process = self._process or await self._start()

    async def ask(self, question: bytes, seconds: float) -> bytes:
        """The answer. Raises HelperDied when there is none in so many seconds, Overloaded when too
        many questions wait."""
        if len(self._asking) > self._max_waiting:
            raise Overloaded(f"{self._max_waiting} others wait for the same; try again later")
        task = asyncio.create_task(self._in_turn(question, seconds))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        # Whoever leaves meanwhile must not cost the others a new process.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the process, and whatever is asked of it."""
        for task in (asking := list(self._asking)):
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._end()

    async def _in_turn(self, question: bytes, seconds: float) -> bytes:
        async with self._turn:
            return await self._answer(question, seconds)

    async def _answer(self, question: bytes, seconds: float) -> bytes:
        try:
            process = self._process = self._process or await self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            async with asyncio.timeout(seconds):
                process.stdin.write(framed(question))
                length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "little")
                return await process.stdout.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            await self._end()
            raise HelperDied("it takes too much time or memory") from None
        except BaseException:  # cancelled between question and answer
            await self._end()
            raise

    async def _start(self) -> Process:
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None
        process.stdin.write(self._hello)
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
