"""Requests on their way into an attention node, while their grammars are compiled."""

import select
import threading
from collections.abc import Iterator

import msgspec
import pytest

from megainfer.attention_node.compiling import Compiling, NoCompiling
from megainfer.attention_node.intake import Intake
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.messages.requests import RequestFailed, Submit
from megainfer.structured import grammar as grammars
from megainfer.structured.grammar import Grammar, GrammarFailed
from tests.support.scheduler_engine import config, submit

WAIT_SECONDS = 10.0


class Clock:
    now = 1.0

    def __call__(self) -> float:
        return self.now


class Compiler:
    """Compiles nothing, when it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def compile(self, grammar: Grammar) -> None:
        assert self.let.wait(WAIT_SECONDS)
        if grammar.text == "bad":
            raise GrammarFailed("too costly")


class Desk:
    """An intake with all that stands around it."""

    def __init__(self) -> None:
        self.clock, self.compiler = Clock(), Compiler()
        self.compiling = Compiling(lambda: self.compiler)  # type: ignore[arg-type,return-value]
        self.scheduler = Scheduler(config(num_micro_batches=1), self.clock)
        self.told: list[RequestFailed] = []
        tell = self.told.append
        self.intake = Intake(0, 100, self.scheduler, self.compiling, tell, self.clock)

    def compile(self) -> None:
        """Everything that was submitted so far, and take it in."""
        self.compiler.let.set()
        while self.intake.num_compiling:
            assert select.select([self.compiling], [], [], WAIT_SECONDS)[0], "nothing was compiled"
            self.intake.turn()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.compiler.let.set()
    desk.compiling.close()


def shaped(name: str, expression: str = "a+", seconds: float | None = None) -> Submit:
    request = submit(name, [1, 2])
    grammar = grammars.regex(expression, "regex")
    return msgspec.structs.replace(request, grammar=grammar, max_queue_seconds=seconds)


def test_the_time_of_compiling_is_time_of_waiting(desk: Desk) -> None:
    desk.intake.submit(shaped("a"))
    assert (desk.intake.num_compiling, desk.scheduler.counters()["waiting"]) == (1, 0)
    desk.clock.now = 4.0
    desk.compile()
    assert (desk.intake.num_compiling, desk.scheduler.counters()["waiting"]) == (0, 1)
    desk.clock.now = 6.0
    step = desk.scheduler.compose(0)
    assert step is not None
    assert [event.queued_seconds for event in desk.scheduler.complete(step, [5])] == [5.0]


def test_who_waits_for_too_long_is_ended_while_compiling_too(desk: Desk) -> None:
    desk.intake.submit(shaped("a", seconds=1.0))
    desk.intake.submit(shaped("b", seconds=9.0))
    desk.intake.submit(shaped("c"))
    desk.clock.now = 3.0
    desk.intake.turn()
    assert [(told.request_id, told.overloaded) for told in desk.told] == [("a", True)]
    desk.compile()
    assert [sequence.request_id for sequence in desk.scheduler.live] == ["b", "c"]
    desk.clock.now = 11.0
    desk.intake.turn()
    assert [told.request_id for told in desk.told] == ["a", "b"]


def test_an_aborted_request_does_not_come_back(desk: Desk) -> None:
    desk.intake.submit(shaped("a"))
    desk.intake.submit(shaped("b"))
    desk.intake.abort("a")
    assert desk.intake.num_compiling == 1
    desk.compile()
    assert [sequence.request_id for sequence in desk.scheduler.live] == ["b"]
    assert desk.told == []


def test_bad_requests_are_answered(desk: Desk) -> None:
    desk.intake.submit(shaped("a", "bad"))
    desk.intake.submit(submit("b", [1, 100]))
    desk.compile()
    told = {failed.request_id: (failed.client_error, failed.message) for failed in desk.told}
    assert told["a"] == (True, "too costly")
    assert told["b"] == (True, "prompt: token id 100 is not in the vocabulary of 100")


def test_without_a_compiler_grammars_are_refused() -> None:
    told: list[RequestFailed] = []
    Intake(0, 100, Scheduler(config(num_micro_batches=1)), NoCompiling(), told.append).submit(
        shaped("a")
    )
    assert [failed.client_error for failed in told] == [True]
