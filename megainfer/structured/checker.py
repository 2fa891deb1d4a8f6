"""Whether a grammar can be used, found out before anything is asked of an attention node."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from megainfer.errors import MegaInferError, Overloaded, RequestError
from megainfer.structured.grammar import Grammar

LENGTH_BYTES = 4
CHECK_SECONDS = 20.0  # the worker's own bound is in CPU time and much smaller
START_SECONDS = 60.0  # loading the largest tokenizer takes a few
MAX_WAITING = 64
KEPT = 256


class GrammarChecker:
    """Has a process of its own try out each new grammar, one at a time.

    The process starts with the first one. A grammar that costs it too much ends it, is refused, and
    the next one gets another; nobody but those who bring a new grammar waits for that.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = [str(folder), str(vocab_size), *map(str, eos_token_ids)]
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._process: Process | None = None
        self._good: OrderedDict[Grammar, None] = OrderedDict()

    async def check(self, grammar: Grammar, param: str) -> None:
        """Raises RequestError saying why not, Overloaded when too many wait to be checked."""
        if grammar in self._good:
            self._good.move_to_end(grammar)
            return
        if self._waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} new grammars are waiting to be compiled; try again later"
            raise Overloaded(message)
        self._waiting += 1
        try:
            async with self._turn:
                reason = await self._ask(grammar)
        finally:
            self._waiting -= 1
        if reason is not None:
            raise RequestError(f"{param}: {reason}", param)
        self._keep(grammar)

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _ask(self, grammar: Grammar) -> str | None:
        frame = msgspec.msgpack.encode(grammar)
        try:
            process = self._process or await self._start()
            assert process.stdin is not None
            process.stdin.write(len(frame).to_bytes(LENGTH_BYTES, "little") + frame)
            async with asyncio.timeout(CHECK_SECONDS):
                return await _hear(process)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            await self._end()
            return f"compiling this {grammar.kind} takes too much time or memory; simplify it"
        except BaseException:  # cancelled between question and answer
            await self._end()
            raise

    async def _start(self) -> Process:
        command = [sys.executable, "-m", "megainfer.structured.worker", *self._arguments]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        self._process = process
        try:
            async with asyncio.timeout(START_SECONDS):
                reason = await _hear(process)
        except (asyncio.IncompleteReadError, TimeoutError) as error:
            await self._end()
            raise MegaInferError("the process that compiles grammars didn't start") from error
        if reason is not None:
            await self._end()
            raise RequestError(reason)
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _keep(self, grammar: Grammar) -> None:
        self._good[grammar] = None
        if len(self._good) > KEPT:
            self._good.popitem(last=False)


async def _hear(process: Process) -> str | None:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "little")
    return msgspec.msgpack.decode(await process.stdout.readexactly(length), type=str | None)
