"""Whether a grammar can be used, found out before anything is asked of an attention node."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from time import monotonic

import msgspec

from megainfer.errors import MegaInferError, RequestError
from megainfer.sharing.turns import Turns
from megainfer.structured.grammar import Grammar, Verdict

LENGTH_BYTES = 4
CHECK_SECONDS = 20.0  # the worker's own bound is in CPU time and much smaller
START_SECONDS = 60.0  # loading the largest tokenizer takes a few
MAX_WAITING = 64
KEPT = 4096


@dataclass(slots=True)
class _Trial:
    """One that waits for its turn, or has begun. waiting: who wants to know."""

    begun: bool = False
    waiting: int = 0
    task: "asyncio.Task[Verdict] | None" = field(default=None, repr=False)


class GrammarChecker:
    """Has a process of its own try out each new grammar, one at a time, by turns of its clients.

    The process starts with the first one. A grammar that costs it too much ends it, is refused, and
    the next one gets another; nobody but those who bring a new grammar waits for that. What came of
    a grammar is remembered, good or not.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = [str(folder), str(vocab_size), *map(str, eos_token_ids)]
        self._turns = Turns(1, MAX_WAITING, "new grammars")
        self._process: Process | None = None
        self._trials: dict[bytes, _Trial] = {}
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()

    async def check(self, grammar: Grammar, param: str, client: str = "") -> Grammar:
        """The grammar with what it costs. Raises RequestError saying why not, Overloaded when too
        many wait to be checked.

        Who is cancelled while it waits isn't tried out any more. What has begun is brought to its
        end: the process would have to be started again, and others wait for it.
        """
        name = sha256(f"{grammar.kind}\n{grammar.text}".encode(errors="surrogatepass")).digest()
        verdict = self._known.get(name)
        if verdict is None:
            verdict = await self._tried(name, grammar, client)
        else:
            self._known.move_to_end(name)
        if verdict.problem is not None:
            raise RequestError(f"{param}: {verdict.problem}", param)
        return msgspec.structs.replace(grammar, cost=verdict.cost)

    async def close(self) -> None:
        """End the process."""
        for trial in list(self._trials.values()):
            assert trial.task is not None
            trial.task.cancel()
        await self._end()

    async def _tried(self, name: bytes, grammar: Grammar, client: str) -> Verdict:
        trial = self._trials.get(name)
        if trial is None:
            trial = self._trials[name] = _Trial()
            work = self._try(trial, name, grammar, client)
            trial.task = asyncio.create_task(work, name="grammar-trial")
            trial.task.add_done_callback(lambda task: self._forget(name, task))
        assert trial.task is not None
        trial.waiting += 1
        try:
            return await asyncio.shield(trial.task)
        finally:
            trial.waiting -= 1
            if not trial.waiting and not trial.begun:
                trial.task.cancel()

    def _forget(self, name: bytes, task: "asyncio.Task[Verdict]") -> None:
        del self._trials[name]
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did, nobody needs it

    async def _try(self, trial: _Trial, name: bytes, grammar: Grammar, client: str) -> Verdict:
        async with self._turns.turn(client):
            trial.begun, since = True, monotonic()
            verdict = await self._ask(grammar)
            self._turns.charge(client, monotonic() - since)
        self._known[name] = verdict
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return verdict

    async def _ask(self, grammar: Grammar) -> Verdict:
        frame = msgspec.msgpack.encode(grammar)
        process = self._process or await self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(len(frame).to_bytes(LENGTH_BYTES, "little") + frame)
            async with asyncio.timeout(CHECK_SECONDS):
                return await _hear(process)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            await self._end()
            what = f"compiling this {grammar.kind} takes too much time or memory; simplify it"
            return Verdict(what)
        except BaseException:  # cancelled between question and answer
            await self._end()
            raise

    async def _start(self) -> Process:
        command = [sys.executable, "-m", "megainfer.structured.worker", *self._arguments]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        self._process = process
        try:
            async with asyncio.timeout(START_SECONDS):
                verdict = await _hear(process)
        except (asyncio.IncompleteReadError, TimeoutError) as error:
            await self._end()
            raise MegaInferError("the process that compiles grammars didn't start") from error
        except BaseException:
            await self._end()
            raise
        if verdict.problem is not None:
            await self._end()
            raise RequestError(verdict.problem)
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _hear(process: Process) -> Verdict:
    assert process.stdout is not None
    length = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "little")
    return msgspec.msgpack.decode(await process.stdout.readexactly(length), type=Verdict)
