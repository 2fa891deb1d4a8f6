"""Busy time by kind, and the latest spans for those who ask."""

from dataclasses import dataclass
from itertools import pairwise
from time import monotonic

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


class Device:
    """Does what it was given only when it is let, at so many seconds an operation."""

    def __init__(self) -> None:
        self.given = 0.0
        self.passed = 0.0

    def give(self, seconds: float) -> None:
        self.given += seconds

    def catch_up(self) -> None:
        self.passed = self.given

    def mark(self) -> "DeviceMark":
        return DeviceMark(self, self.given)


@dataclass
class DeviceMark:
    device: Device
    at: float

    def done(self) -> bool:
        return self.device.passed >= self.at

    def seconds_since(self, earlier: "DeviceMark") -> float:
        assert self.done()
        assert earlier.done()
        return self.at - earlier.at


def test_a_devices_seconds_are_its_own_and_counted_when_it_is_done() -> None:
    device = Device()
    clock = StageClock(trace=9, mark=device.mark)
    for layer in (1, 2):
        with clock.span("attention", 0, layer):
            device.give(3.0)
        device.give(100.0)  # in no span
    assert "attention_seconds" not in clock.counters()
    assert clock.take_spans() == []
    device.catch_up()
    counters = clock.counters()
    assert counters["attention_seconds"] == counters["busy_seconds"] == pytest.approx(6.0)
    assert counters["attention_count"] == 2
    first, second = clock.take_spans()
    assert (first.layer, second.layer) == (1, 2)
    assert second.start - first.start == pytest.approx(103.0)
    assert first.end - first.start == pytest.approx(3.0)


def test_a_lap_tells_when_its_work_has_been_done() -> None:
    device = Device()
    told: list[float] = []
    clock = StageClock(mark=device.mark)
    lap = clock.lap()
    with clock.span("expert", 0, 0):
        device.give(2.0)
    device.give(1.0)
    lap.end(lambda started, ended: told.append(ended - started))
    assert told == []
    device.catch_up()
    clock.collect()
    assert told == [pytest.approx(3.0)]


def test_on_the_host_a_lap_tells_at_once() -> None:
    told: list[tuple[float, float]] = []
    before = monotonic()
    StageClock().lap().end(lambda started, ended: told.append((started, ended)))
    ((started, ended),) = told
    assert before <= started <= ended <= monotonic()


def test_work_that_fails_was_work() -> None:
    clock = StageClock(trace=1)
    with pytest.raises(ZeroDivisionError), clock.span("expert", 0, 0):
        1 / 0  # noqa: B018
    assert clock.counters()["expert_count"] == len(clock.take_spans()) == 1
