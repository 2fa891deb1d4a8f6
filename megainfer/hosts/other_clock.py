"""How far the clock of another host is ahead of this one's, as pulses tell, both of which travel.

    one                            the other
    said at t1   -- Pulse(t1) -->
                                   heard at s2, on a clock of its own
                                   some time later, at s3:
    heard at t4  <-- Pulse(s3, t1, s3 - s2) --

The round trip took t4 - t1 - (s3 - s2), and s3 was half of it ago (as NTP, RFC 5905, has it).
"""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from megainfer.messages.hosts import Pulse

_KEPT = 16
"""Latest round trips, of which the fastest counts: in so long clocks hardly drift apart."""


class _Trip(NamedTuple):
    seconds: float
    ahead: float


class OtherClock:
    """The monotonic one of whoever is at the other end, which began to count with its machine.

    ahead: seconds; true to half the fastest round trip. 0 until a pulse has been answered.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._heard: tuple[float, float] | None = None  # the latest: its time, and ours
        self._trips: deque[_Trip] = deque(maxlen=_KEPT)
        self.ahead = 0.0

    def pulse(self) -> Pulse:
        """To be sent now."""
        now = self._clock()
        if self._heard is None:
            return Pulse(now)
        theirs, ours = self._heard
        return Pulse(now, theirs, now - ours)

    def hear(self, pulse: Pulse) -> None:
        """It has come just now."""
        now = self._clock()
        self._heard = pulse.now, now
        if pulse.heard is None:
            return
        seconds = now - pulse.heard - pulse.held
        self._trips.append(_Trip(seconds, pulse.now + seconds / 2 - now))
        self.ahead = min(self._trips).ahead
