"""Busy time by kind, and the latest spans for those who ask."""

from itertools import pairwise

import pytest

from megainfer.instruments.stage_clock import NOT_OF_ONE, StageClock


def test_counters_add_up_what_spans_took() -> None:
    clock = StageClock(trace=10)
    for layer in range(3):
        with clock.span("attention", 1, layer):
            pass
    with clock.span("sample"):
        pass
    counters, spans = clock.counters(), clock.take_spans()
    assert counters["attention_count"] == 3
    assert counters["busy_seconds"] == pytest.approx(sum(s.end - s.start for s in spans))
    assert [(s.kind, s.micro_batch, s.layer) for s in spans] == [
        ("attention", 1, 0),
        ("attention", 1, 1),
        ("attention", 1, 2),
        ("sample", NOT_OF_ONE, NOT_OF_ONE),
    ]
    assert all(a.end <= b.start for a, b in pairwise(spans))


def test_only_the_latest_spans_are_kept_and_each_is_given_once() -> None:
    clock = StageClock(trace=2)
    for layer in range(5):
        with clock.span("expert", 0, layer):
            pass
    assert [span.layer for span in clock.take_spans()] == [3, 4]
    assert clock.take_spans() == []


def test_nothing_is_kept_unless_asked_for() -> None:
    clock = StageClock()
    with clock.span("expert", 0, 0):
        pass
    assert clock.take_spans() == []
    assert clock.counters()["expert_count"] == 1


def test_work_that_fails_was_work() -> None:
    clock = StageClock(trace=1)
    with pytest.raises(ZeroDivisionError), clock.span("expert", 0, 0):
        1 / 0  # noqa: B018
    assert clock.counters()["expert_count"] == len(clock.take_spans()) == 1
