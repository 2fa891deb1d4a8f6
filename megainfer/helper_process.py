"""A process that does what may cost too much, and is replaced when it dies of it.

Frames on both of its pipes: the length in 4 bytes, little-endian, then the bytes. The other half is
`helper_frames`.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from megainfer.errors import MegaInferError
from megainfer.helper_frames import LENGTH_BYTES, framed
from megainfer.sharing.rests import Rests
from megainfer.sharing.turns import Turns

START_SECONDS = 60.0
"""Loading the largest tokenizer takes a few."""
LONG_SECONDS = 0.1
"""Of CPU time for one question, after which its client rests."""
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
GONE = (asyncio.IncompleteReadError, ConnectionError, TimeoutError)


class HelperDied(MegaInferError):
    """The question cost more than it may."""


@dataclass(slots=True)
class Question:
    """Something that is asked of a helper. begun: it isn't waiting any more. answer: raises
    HelperDied when there is none in time, Overloaded when too many wait."""

    begun: bool = False
    answer: "asyncio.Task[bytes]" = field(init=False, repr=False)

    def withdraw(self) -> None:
        """Nobody waits for it any more. What has begun is brought to its end: the process would
        have to be started again, and others wait for it."""
        if not self.begun:
            self.answer.cancel()


@dataclass(frozen=True, slots=True)
class Helper:
    """What a helper process is: `python -m module *arguments`.

    hello: the frame that it is sent before any question. greeted: looks at what it says before the
    first question, and raises where it can't be used; None: it says nothing then.
    """

    module: str
    arguments: Sequence[str]
    hello: bytes = b""
    greeted: Callable[[bytes], None] | None = None


class HelperProcess:
    """Answers each frame by one, one at a time, and starts with the first.

    Clients take turns, weighed by the time that their questions took, and rest after those that
    took long, since it computes where others do too. max_waiting: questions that wait while another
    is asked; what: they are, in the plural. rests: of who asks here.
    """

    def __init__(
        self, helper: Helper, max_waiting: int, what: str, rests: Rests | None = None
    ) -> None:
        self._helper = helper
        self._rests = rests or Rests()
        self._turns = Turns(1, max_waiting, what, self._rests)
        self._starting = asyncio.Lock()
        self._process: Process | None = None
        self._asking: set[asyncio.Task[bytes]] = set()

    async def prepare(self) -> None:
        """Start it now, so that the first question doesn't wait for that."""
        await self._running()

    async def ask(self, question: bytes, seconds: float, client: str = "") -> bytes:
        """`put`, and the answer; who is cancelled while it waits isn't served any more."""
        asked = self.put(question, seconds, client)
        try:
            return await asyncio.shield(asked.answer)
        except asyncio.CancelledError:
            asked.withdraw()
            raise

    def put(self, question: bytes, seconds: float, client: str = "") -> Question:
        """Have it answered within so many seconds, once it is the client's turn."""
        asked = Question()
        work = self._in_turn(asked, question, seconds, client)
        asked.answer = asyncio.create_task(work, name="helper-question")
        self._asking.add(asked.answer)
        asked.answer.add_done_callback(self._forget)
        return asked

    async def close(self) -> None:
        """End the process, and whatever is asked of it."""
        for task in (asking := list(self._asking)):
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._end()

    def _forget(self, task: "asyncio.Task[bytes]") -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did, nobody needs it

    async def _in_turn(self, asked: Question, frame: bytes, seconds: float, client: str) -> bytes:
        async with self._turns.turn(client, 0.0):
            asked.begun = True
            process = await self._running()
            since, computed = monotonic(), _cpu_seconds(process)
            try:
                return await self._answer(frame, seconds)
            finally:
                took = monotonic() - since
                self._turns.charge(client, took)
                # What a busy machine adds is nobody's fault. Who ended it had it compute all along.
                now = _cpu_seconds(process)
                costs = took if now is None or computed is None else now - computed
                if costs > LONG_SECONDS:
                    self._rests.note(client, costs)

    async def _answer(self, question: bytes, seconds: float) -> bytes:
        process = await self._running()
        try:
            assert process.stdin is not None
            async with asyncio.timeout(seconds):
                process.stdin.write(framed(question))
                return await _hear(process)
        except GONE:
            await self._end()
            raise HelperDied("it takes too much time or memory") from None
        except BaseException:  # cancelled between question and answer
            await self._end()
            raise

    async def _running(self) -> Process:
        async with self._starting:
            return self._process or await self._start()

    async def _start(self) -> Process:
        helper = self._helper
        command = [sys.executable, "-m", helper.module, *helper.arguments]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        self._process = process
        assert process.stdin is not None
        try:
            if helper.hello:
                process.stdin.write(framed(helper.hello))
            if helper.greeted is not None:
                async with asyncio.timeout(START_SECONDS):
                    helper.greeted(await _hear(process))
        except GONE as error:
            await self._end()
            raise MegaInferError(f"python -m {helper.module} didn't start") from error
        except BaseException:
            await self._end()
            raise
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _hear(process: Process) -> bytes:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "little")
    return await process.stdout.readexactly(length)


def _cpu_seconds(process: Process) -> float | None:
    """That it has computed so far; None once it has ended."""
    try:
        told = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return None
    user, system = told.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS_A_SECOND
