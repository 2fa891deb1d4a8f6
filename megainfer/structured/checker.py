"""Whether a grammar can be used, found out before anything is asked of an attention node."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import msgspec

from megainfer.errors import RequestError
from megainfer.helper_process import Helper, HelperDied, HelperProcess, Question
from megainfer.sharing.rests import Rests
from megainfer.structured.grammar import Grammar, Verdict

CHECK_SECONDS = 20.0  # the worker's own bound is in CPU time and much smaller
MAX_WAITING = 64
KEPT = 4096


@dataclass(slots=True)
class _Trial:
    """One that waits for its turn, or has begun. waiting: who wants to know."""

    question: Question
    waiting: int = 0
    verdict: "asyncio.Task[Verdict]" = field(init=False, repr=False)


class GrammarChecker:
    """Has a process of its own try out each new grammar, one at a time, by turns of its clients.

    The process starts with the first one. A grammar that costs it too much ends it, is refused, and
    the next one gets another; nobody but those who bring a new grammar waits for that. What came of
    a grammar is remembered, good or not.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        rests: Rests | None = None,
    ) -> None:
        """rests: of who brings grammars that take long."""
        arguments = [str(folder), str(vocab_size), *map(str, eos_token_ids)]
        helper = Helper("megainfer.structured.worker", arguments, greeted=_check_greeting)
        self._helper = HelperProcess(helper, MAX_WAITING, "new grammars", rests)
        self._trials: dict[bytes, _Trial] = {}
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()

    async def check(self, grammar: Grammar, param: str, client: str = "") -> Grammar:
        """The grammar with what it costs. Raises RequestError saying why not, Overloaded when too
        many wait to be checked.

        Who is cancelled while it waits isn't tried out any more.
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
        await self._helper.close()

    async def _tried(self, name: bytes, grammar: Grammar, client: str) -> Verdict:
        trial = self._trials.get(name) or self._begin(name, grammar, client)
        trial.waiting += 1
        try:
            return await asyncio.shield(trial.verdict)
        finally:
            trial.waiting -= 1
            if not trial.waiting:
                trial.question.withdraw()

    def _begin(self, name: bytes, grammar: Grammar, client: str) -> _Trial:
        question = self._helper.put(msgspec.msgpack.encode(grammar), CHECK_SECONDS, client)
        trial = self._trials[name] = _Trial(question)
        trial.verdict = asyncio.create_task(self._judge(name, grammar, question))
        trial.verdict.add_done_callback(lambda task: self._forget(name, task))
        return trial

    async def _judge(self, name: bytes, grammar: Grammar, question: Question) -> Verdict:
        try:
            verdict = msgspec.msgpack.decode(await question.answer, type=Verdict)
        except HelperDied:
            problem = "takes too much time or memory; simplify it"
            verdict = Verdict(f"compiling this {grammar.kind} {problem}")
        self._known[name] = verdict
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return verdict

    def _forget(self, name: bytes, task: "asyncio.Task[Verdict]") -> None:
        del self._trials[name]
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody did, nobody needs it


def _check_greeting(greeting: bytes) -> None:
    """Raises RequestError for a model of which no grammar can be used."""
    verdict = msgspec.msgpack.decode(greeting, type=Verdict)
    if verdict.problem is not None:
        raise RequestError(verdict.problem)
