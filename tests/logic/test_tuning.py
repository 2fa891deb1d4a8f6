"""The tuner finds the m that gives most, whatever else happens."""

from collections.abc import Callable

import pytest

from megainfer.attention_node.scheduling.tuning import (
    TRUSTED_SECONDS,
    MicroBatchTuner,
    StepProgress,
)

Rate = Callable[[int, int, float], float]
"""Tokens a second of m micro-batches, so many requests, so much context."""


class Node:
    """Steps of an attention node whose throughput is a formula."""

    def __init__(self, rate: Rate, limit: int = 4, first: int = 2) -> None:
        self.tuner = MicroBatchTuner(limit, first)
        self.rate = rate
        self.now = 100.0
        self.tried = set[int]()

    def run(self, seconds: float, running: int, context: float = 100.0) -> list[int]:
        """Decode for so long; the m of each step."""
        end, used = self.now + seconds, []
        while self.now < end:
            m = self.tuner.active
            used.append(m)
            self.tried.add(m)
            tokens = max(1, running // m)
            self.now += tokens / self.rate(m, running, context)
            self.tuner.step_ended(StepProgress(self.now, tokens, running, context, prefills=False))
        return used

    def prefill(self, steps: int) -> None:
        for _ in range(steps):
            self.now += 0.05
            self.tuner.step_ended(StepProgress(self.now, 1, 8, 100.0, prefills=True))


def peak_at(best: int) -> Rate:
    return lambda m, running, context: 3000.0 / (1 + 0.2 * abs(m - best))


@pytest.mark.parametrize("best", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [1, 2, 4])
def test_it_climbs_to_the_best(best, first):
    node = Node(peak_at(best), first=first)
    used = node.run(5.0, running=16)
    assert node.tuner.active == best
    assert used.count(best) > 0.5 * len(used)


def test_of_about_equals_it_takes_the_least():
    node = Node(lambda m, running, context: 3000.0 + m, first=3)
    node.run(5.0, running=16)
    assert node.tuner.active == 1


def test_another_load_is_another_question():
    """Few requests are best off in one micro-batch, long ones in two."""
    node = Node(lambda m, running, context: 3000.0 - 300 * abs(m - (2 if context > 1000 else 1)))
    node.run(3.0, running=16, context=100)
    assert node.tuner.active == 1
    node.run(3.0, running=16, context=4000)
    assert node.tuner.active == 2


def test_a_load_that_comes_back_is_remembered():
    node = Node(peak_at(1), first=1)
    node.run(3.0, running=16)
    node.run(1.0, running=4)
    assert set(node.run(1.0, running=16)) == {1}


def test_after_a_while_it_looks_again():
    node = Node(peak_at(1), first=1)
    node.run(3.0, running=16)
    node.rate = peak_at(3)
    node.run(TRUSTED_SECONDS + 5.0, running=16)
    assert node.tuner.active == 3


def test_no_more_micro_batches_than_requests():
    node = Node(peak_at(4), first=1)
    node.run(5.0, running=2)
    assert node.tuner.active == 2
    assert node.tried == {1, 2}


def test_prefill_is_no_measurement():
    node = Node(peak_at(4), first=2)
    for _ in range(50):
        node.prefill(3)
        node.run(0.01, running=8)  # too short to tell
    assert node.tried == {2}


def test_a_change_of_m_is_not_measured_while_requests_move():
    """Steps right after a change are of the old distribution: here they would mislead."""
    node = Node(peak_at(2), first=1)
    since_change = 0

    def rate(m: int, running: int, context: float) -> float:
        nonlocal since_change
        since_change = 0 if m != rate.last else since_change + 1  # type: ignore[attr-defined]
        rate.last = m  # type: ignore[attr-defined]
        return 100.0 if m == 2 and since_change < 6 else peak_at(2)(m, running, context)

    rate.last = 1  # type: ignore[attr-defined]
    node.rate = rate
    node.run(10.0, running=16)
    assert node.tuner.active == 2
