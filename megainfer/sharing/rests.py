"""Who has held something up for others rests, in proportion. Pure: no I/O; the clock is given.

Turns alone don't bound what a client takes of something that is one at a time: while nobody else
waits just then, the next is again its own, and whoever comes finds it begun.
"""

from collections.abc import Callable, Iterable
from time import monotonic

REST = 2.0
"""Seconds of rest for each second: one client has a third of the time at most."""
LONGEST_REST_SECONDS = 10.0


def nobody(client: str) -> bool:
    """There is no other client."""
    return False


class Rests:
    """`note` what a client took; it begins nothing more while some is `left` of its rest. others:
    whether there is anybody whom this client can hold up; who is alone doesn't rest."""

    def __init__(
        self, others: Callable[[str], bool] = nobody, clock: Callable[[], float] = monotonic
    ) -> None:
        self._others = others
        self._clock = clock
        self._until: dict[str, float] = {}

    def note(self, client: str, seconds: float) -> None:
        """It has had so much more at a time."""
        if not self._others(client):
            return
        now = self._clock()
        self._until = {other: until for other, until in self._until.items() if until > now}
        rested = self._until.get(client, now - seconds) + seconds  # meanwhile it didn't rest
        until = max(rested, now) + REST * seconds
        self._until[client] = min(until, now + LONGEST_REST_SECONDS)

    def left(self, client: str) -> float:
        """Seconds that it still rests; 0 where it doesn't."""
        until = self._until.get(client)  # most never had to
        return 0.0 if until is None else max(0.0, until - self._clock())

    def may(self, client: str) -> bool:
        """Whether it may begin something."""
        return not self._until or not self.left(client)

    def soonest(self, clients: Iterable[str]) -> float:
        """Seconds until one of these may."""
        return min(map(self.left, clients))
