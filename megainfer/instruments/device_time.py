"""When a device did what it was given, by marks between the pieces of its work.

A mark is looked at only once the device has passed it, so nobody waits for anything. The device
tells seconds between two marks, by a clock of its own; the host knows when it gave a mark and when
it saw that it had been passed, and between these two moments the mark lies on the host's clock.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple, Protocol


class Mark(Protocol):
    """A point in a device's work, such as a timed event that was recorded."""

    def done(self) -> bool:
        """Whether the device has passed it; never blocks."""

    def seconds_since(self, earlier: Any) -> float:
        """The device's seconds between two marks that it has passed."""


class Marks(Protocol):
    """Those of a device: as many as were made at the start, over and over."""

    def take(self) -> Mark | None:
        """One behind all that the current stream was given; None where all are on their way."""

    def give_back(self, mark: Any) -> None:
        """It may be taken again."""


Then = Callable[[float, float], None]
"""Hears from when to when something was done, in seconds of the host's monotonic clock."""


class Beginning(NamedTuple):
    """Of something that a device is given. at: when it was, by the host's clock."""

    mark: Mark
    at: float


class _Waiting(NamedTuple):
    began: Beginning
    ended: Beginning
    then: Then


class DeviceTime:
    """What a device has been given between pairs of marks, until it has done it.

    now: the host's clock. Marks are of one stream, so that they are passed in their order.
    """

    def __init__(self, marks: Marks, now: Callable[[], float] = monotonic) -> None:
        self._marks, self.now = marks, now
        self._waiting: deque[_Waiting] = deque()
        # The latest mark that is known to be passed, and when that was by the host's clock. From
        # one to the next: the longer two marks lie apart, the less exact are the seconds between.
        anchor = marks.take()
        assert anchor is not None, "a device has no marks at all"
        self._known, self._known_at = anchor, now()

    def begin(self) -> Beginning | None:
        """Here begins something; None where no mark is free."""
        mark = self._marks.take()
        if mark is None:
            self.collect()  # those that have been passed meanwhile
            mark = self._marks.take()
        return None if mark is None else Beginning(mark, self.now())

    def end(self, began: Beginning, then: Then) -> bool:
        """It ends here; `then` hears of it once it has been done. False where no mark is free: then
        nobody does."""
        ended = self.begin()
        if ended is None:
            self._marks.give_back(began.mark)
            return False
        self._waiting.append(_Waiting(began, ended, then))
        self.collect()
        return True

    def collect(self) -> None:
        """Tell of what has been done by now."""
        while self._waiting and self._waiting[0].ended.mark.done():
            began, ended, then = self._waiting.popleft()
            seconds = ended.mark.seconds_since(began.mark)
            # The two clocks drift apart; but nothing is done before it was given, nor after it was
            # seen, and a device that was idle does it at once.
            at = self._known_at + ended.mark.seconds_since(self._known)
            at = min(max(at, ended.at, began.at + seconds), self.now())
            for passed in (began.mark, self._known):
                self._marks.give_back(passed)
            self._known, self._known_at = ended.mark, at
            then(at - seconds, at)
