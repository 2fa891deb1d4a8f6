"""Faults drawn by seed in a real instance: no wrong token, no lost request, nothing left behind.

benchmarks/chaos.py tries a thousand, over all shapes; what a seed stands for, tests/support/chaos
says.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.chaos.draw import DRAWN, EVERYTHING, SHAPES, Phase, Scope, Shape, Target, draw
from tests.support.chaos.instance import write_model
from tests.support.chaos.runner import Runner
from tests.support.chaos.trial import POOL, orders_of
from tests.support.chaos.wishes import KINDS, End, Outcome, Wish, mistakes

LONG_SECONDS = 900
REPLICATED = Shape(2, 2, replicas=4)
AT_WORK = Scope(
    shapes=(REPLICATED,),
    phases=(Phase.PREFILL, Phase.DECODE, Phase.COMBINE, Phase.RECOVERY),
    targets=(Target.ATTENTION, Target.EXPERT),
    loads=(1, 8),
)
"""What one instance outlives."""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(write_model(tmp_path_factory.mktemp("model")))
    yield runner
    runner.close()


def undisturbed(runner: Runner, seeds: Sequence[int], scope: Scope) -> None:
    """Whatever is done to it, it is as if nothing had been, as far as that is promised."""
    reports = list(runner.run([draw(seed, scope) for seed in seeds]))
    wrong = {report.draw: report.wrong for report in reports if report.wrong}
    assert wrong == {}
    fired = sum(report.fired for report in reports)
    assert fired >= len(reports) * 0.8, "most faults are to be done while somebody waits"


@pytest.mark.timeout(LONG_SECONDS)
def test_twenty_faults(runner: Runner) -> None:
    undisturbed(runner, range(20), AT_WORK)


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS)
@pytest.mark.parametrize("first", range(1000, 1100, 20))
def test_a_hundred_faults_of_every_kind(runner: Runner, first: int) -> None:
    undisturbed(runner, range(first, first + 20), EVERYTHING)


# --- the harness itself: a judge that lets everything pass proves nothing -----------------------


def test_seeds_stand_for_every_fault_target_phase_and_shape() -> None:
    draws = [draw(seed) for seed in range(1000)]
    assert {d.fault for d in draws} == set(DRAWN)
    assert {d.target for d in draws} == set(Target)
    assert {d.phase for d in draws} == set(Phase)
    assert {d.shape for d in draws} == set(SHAPES)
    assert draws == [draw(seed) for seed in range(1000)]
    assert all(orders_of(d)[-1].fault is d.fault for d in draws)


def outcome(tokens: list[int], end: End, drawn: bool = False) -> Outcome:
    wish = Wish("greedy", "/v1/completions", {}, drawn)
    answer = {"0 tokens": tokens, **({"0 end": ["length"]} if end is End.DONE else {})}
    return Outcome(wish, end, answer=answer)


EXPECTED = {"0 tokens": [5, 6, 7], "0 end": ["length"]}


@pytest.mark.parametrize(
    ("tokens", "end", "what"),
    [
        ([5, 6, 8], End.DONE, "0 tokens is [5, 6, 8], not [5, 6, 7]"),
        ([5, 6, 6, 7], End.DONE, "0 tokens is [5, 6, 6, 7], not [5, 6, 7]"),
        ([5, 7], End.CUT, "0 tokens is [5, 7], not [5, 6, 7]"),
        ([5, 6], End.DONE, "0 tokens is [5, 6], not [5, 6, 7]"),
        ([5, 6, 7, 7], End.ERROR, "0 tokens is [5, 6, 7, 7], not [5, 6, 7]"),
    ],
)
def test_a_wrong_a_lost_and_a_doubled_token_are_mistakes(
    tokens: list[int], end: End, what: str
) -> None:
    assert mistakes(outcome(tokens, end), EXPECTED, moved=True) == [what]


def test_what_was_cut_short_is_compared_as_far_as_it_came() -> None:
    assert mistakes(outcome([5, 6], End.CUT), EXPECTED, moved=False) == []
    assert mistakes(outcome([5, 6, 7], End.DONE), EXPECTED, moved=False) == []


def test_of_what_was_drawn_numbers_count() -> None:
    assert mistakes(outcome([1, 2, 3], End.DONE, drawn=True), EXPECTED, moved=False) == []
    (mistake,) = mistakes(outcome([1, 2, 3, 4], End.DONE, drawn=True), EXPECTED, moved=False)
    assert re.match(r"0 tokens is \[1, 2, 3, 4\]", mistake)


def test_every_kind_of_request_is_there() -> None:
    assert len(KINDS) == 12


def test_a_fault_that_breaks_a_promise_is_found(runner: Runner, tmp_path: Path) -> None:
    """Tokens that differ from the undisturbed ones, as a wrong recovery would give."""
    instance = runner.at_rest(REPLICATED)
    answers = runner.answers(REPLICATED)
    wish = POOL[0]
    outcomes = [Outcome(Wish(wish.kind, wish.path, {**wish.body, "prompt": [1, 2, 3]}))]
    runner.ask(instance, outcomes)
    assert outcomes[0].end is End.DONE
    assert answers.judge(Outcome(wish, End.DONE, answer=outcomes[0].answer), moved=False)
