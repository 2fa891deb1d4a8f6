"""Stages of a start, by a clock that the test sets."""

from megainfer.instruments.startup_clock import StartupClock


def test_a_stage_ends_where_the_next_begins() -> None:
    times = iter([10.0, 12.5, 12.5, 13.0])
    clock = StartupClock(lambda: next(times))
    clock.add("model", 4.0)
    clock.begin("libraries")
    clock.begin("weights")
    clock.end()
    clock.end()
    assert clock.seconds == {"model": 4.0, "libraries": 2.5, "weights": 0.5}
