"""How far another host's clock is ahead, by pulses that take their time."""

from random import Random

import pytest

from megainfer.hosts.other_clock import OtherClock
from megainfer.messages.hosts import Pulse

APART = 12345.678  # seconds; machines that were started at other times
DRIFT = 50e-6


class Between:
    """Two ends, whose pulses take seconds that are drawn."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self.lots = Random(seed)
        self.here = OtherClock(lambda: self.now)
        self.there = OtherClock(lambda: self.now * (1 + DRIFT) + APART)

    @property
    def ahead(self) -> float:
        return self.now * DRIFT + APART

    def exchange(self, least: float, most: float) -> None:
        """A pulse each, half a second apart."""
        for end, other in ((self.here, self.there), (self.there, self.here)):
            pulse = end.pulse()
            self.now += self.lots.uniform(least, most)
            other.hear(pulse)
            self.now += 0.25


@pytest.mark.parametrize("seed", range(5))
def test_it_is_known_to_half_a_round_trip(seed: int) -> None:
    between = Between(seed)
    for _ in range(40):
        between.exchange(1e-4, 2e-4)
    assert between.here.ahead == pytest.approx(between.ahead, abs=2e-4 + 8 * DRIFT)
    assert between.there.ahead == pytest.approx(-between.ahead, abs=2e-4 + 8 * DRIFT)


def test_the_fastest_of_the_latest_counts() -> None:
    between = Between(0)
    between.exchange(1e-4, 1e-4)
    between.exchange(1e-4, 1e-4)
    for _ in range(10):
        between.exchange(0.0, 0.4)  # a network that is busy
    assert between.here.ahead == pytest.approx(between.ahead, abs=1e-4 + 20 * DRIFT)


def test_it_is_unknown_before_a_pulse_is_answered() -> None:
    clock = OtherClock(lambda: 5.0)
    assert clock.pulse() == Pulse(5.0)
    clock.hear(Pulse(99.0))
    assert clock.ahead == 0.0
    assert clock.pulse() == Pulse(5.0, 99.0, 0.0)
