"""Busy time by kind, and the latest spans for those who ask."""

from dataclasses import dataclass
from itertools import pairwise
from time import monotonic

import pytest

from megainfer.instruments.stage_clock import NOT_OF_ONE, TIMED_EVERY, StageClock


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
    """Does what it was given only when it is let, at so many seconds an operation, and gives marks
    of that. now: the host's clock. drift: by how much its own clock is faster."""

    def __init__(self, marks: int = 100) -> None:
        self.given = self.passed = self.now = self.drift = 0.0
        self.free = [DeviceMark(self) for _ in range(marks)]

    def give(self, seconds: float) -> None:
        self.given += seconds

    def catch_up(self) -> None:
        self.passed = self.given

    def take(self) -> "DeviceMark | None":
        if not self.free:
            return None
        mark = self.free.pop()
        mark.at = self.given
        return mark

    def give_back(self, mark: "DeviceMark") -> None:
        assert mark.done(), "it would be recorded anew before it is passed"
        assert mark not in self.free
        self.free.append(mark)


@dataclass(eq=False)
class DeviceMark:
    device: Device
    at: float = 0.0

    def done(self) -> bool:
        return self.device.passed >= self.at

    def seconds_since(self, earlier: "DeviceMark") -> float:
        assert self.done(), "whoever asked would wait"
        assert earlier.done()
        return (self.at - earlier.at) * (1 + self.device.drift)


def clock_of(device: Device, trace: int = 0) -> StageClock:
    return StageClock(trace, device, lambda: device.now)


def test_a_devices_seconds_are_its_own_and_counted_when_it_is_done() -> None:
    device = Device()
    clock = clock_of(device, trace=9)
    for layer in (1, 2):
        with clock.span("attention", 0, layer):
            device.give(3.0)
            device.now += 0.25
        device.give(100.0)  # in no span
    assert "attention_seconds" not in clock.counters()
    host = [("attention", 0, layer, at, at + 0.25, False) for layer, at in ((1, 0.0), (2, 0.25))]
    assert clock.take_spans() == host, "the host's are there as soon as all was given"
    device.catch_up()
    device.now = 300.0
    counters = clock.counters()
    assert counters["attention_seconds"] == counters["busy_seconds"] == pytest.approx(6.0)
    assert counters["host_attention_seconds"] == pytest.approx(0.5)
    assert (counters["attention_count"], counters["device_spans_missed"]) == (2, 0)
    first, second = clock.take_spans()
    assert (first.layer, second.layer) == (1, 2)
    assert first.on_device
    assert second.on_device
    assert second.start - first.start == pytest.approx(103.0)
    assert first.end - first.start == pytest.approx(3.0)


def test_what_the_host_does_itself_is_no_work_of_its_device() -> None:
    device = Device()
    clock = clock_of(device, trace=9)
    with clock.host_span("schedule", 1):
        device.now += 2.0
    counters = clock.counters()
    assert counters["schedule_seconds"] == counters["host_schedule_seconds"] == 2.0
    assert (counters["schedule_count"], counters["busy_seconds"]) == (1, 0.0)
    assert clock.take_spans() == [("schedule", 1, NOT_OF_ONE, 0.0, 2.0, False)]


def test_while_nobody_looks_few_spans_are_timed_and_they_stand_for_the_others() -> None:
    device = Device()
    clock, turns = clock_of(device), 3 * TIMED_EVERY + 1
    taken = 0
    for _ in range(turns):
        before = len(device.free)
        with clock.span("expert", 0, 0):
            device.give(2.0)
            taken += before != len(device.free)
        with clock.span("reply", 0, 0):
            device.give(0.5)
        device.catch_up()
        device.now += 2.5
    counters = clock.counters()
    assert taken == 4
    assert counters["expert_count"] == counters["reply_count"] == turns
    assert counters["expert_seconds"] == pytest.approx(2.0 * turns)
    assert counters["reply_seconds"] == pytest.approx(0.5 * turns)
    assert clock.take_spans() == []
    assert len(device.free) == 99, "all but the one from which the next seconds are told"


def test_spans_for_which_no_mark_is_free_are_counted_and_the_others_are_whole() -> None:
    device = Device(marks=7)  # one is the anchor: three spans
    clock = clock_of(device, trace=9)
    for layer in range(5):
        with clock.span("expert", 0, layer):
            device.give(1.0)
    assert clock.counters()["device_spans_missed"] == 2
    device.catch_up()
    device.now = 5.0
    with clock.span("expert", 0, 5):
        device.give(1.0)
    device.catch_up()
    device.now = 6.0
    counters, spans = clock.counters(), clock.take_spans()
    assert [span.layer for span in spans if not span.on_device] == [*range(6)]
    own = [(span.layer, span.end - span.start) for span in spans if span.on_device]
    assert own == [(layer, pytest.approx(1.0)) for layer in (0, 1, 2, 5)]
    assert counters["device_spans_missed"] == 2
    assert counters["expert_count"] == 6
    assert counters["expert_seconds"] == pytest.approx(6.0), "the last one stands for the missed"


@pytest.mark.parametrize("drift", [1e-3, -1e-3])
def test_however_the_two_clocks_drift_spans_are_where_the_host_knows_them(drift: float) -> None:
    device = Device()
    device.drift = drift
    clock = clock_of(device, trace=9)
    for turn in range(1000):
        given = device.now
        with clock.span("expert", 0, turn):
            device.give(0.5)
        device.now += 0.5
        device.catch_up()
        clock.collect()
        (_, span) = clock.take_spans()
        assert given - 1e-3 <= span.start < span.end <= device.now + 1e-9
        device.now += 0.5
        device.give(0.5)  # it does nothing meanwhile, by its own clock
        device.catch_up()


def test_a_lap_tells_when_its_work_has_been_done() -> None:
    device = Device()
    told: list[float] = []
    clock = clock_of(device)
    lap = clock.lap()
    with clock.span("expert", 0, 0):
        device.give(2.0)
    device.give(1.0)
    lap.end(lambda started, ended: told.append(ended - started))
    assert told == []
    device.catch_up()
    clock.collect()
    assert told == [pytest.approx(3.0)]


@pytest.mark.parametrize("marks", [1, 2])
def test_a_lap_without_a_mark_is_the_hosts(marks: int) -> None:
    device = Device(marks)
    told: list[tuple[float, float]] = []
    lap = clock_of(device).lap()
    device.now = 4.0
    lap.end(lambda *times: told.append(times))
    assert told == [(0.0, 4.0)]


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
