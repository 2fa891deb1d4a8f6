"""How a node waits where a bell announces what a device has yet to publish."""

import time
from collections.abc import Callable, Sequence

from megainfer.m2n.slotted.sleeper import OwnBell, PlainSleeper, Watched

_TICK_SECONDS = 1e-3
"""The shortest time that poll(2) knows."""


class DeviceSleeper(PlainSleeper):
    """`Sleeper` whose bell rings when a message is enqueued. Nobody rings when it is published, so
    from the bell until the word it looks: for `spin_seconds` at a time, then after each nap of
    `nap_seconds`.

    awaits: whether something was announced that is yet to be published.
    """

    def __init__(
        self,
        news: Callable[[], bool],
        awaits: Callable[[], bool],
        bell: OwnBell,
        spin_seconds: float,
        nap_seconds: float,
    ) -> None:
        super().__init__(news, bell, spin_seconds)
        self._awaits, self._nap_seconds = awaits, nap_seconds

    def sleep(self, timeout: float, watched: Watched) -> Sequence[int]:
        """See `Sleeper.sleep`."""
        deadline = time.monotonic() + max(timeout, 0.0)
        # In this order: what is published between the two questions is found by the second.
        awake = self._awaits() or self._news()
        ready = self._doze(0.0 if awake else timeout, watched)
        while not ready and self._awaits() and not self._news():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if not self._spin(min(left, self._spin_seconds)):
                ready = self._nap(min(left, self._nap_seconds), watched)
        return ready

    def _nap(self, seconds: float, watched: Watched) -> Sequence[int]:
        if seconds >= _TICK_SECONDS:
            return self._doze(seconds, watched)
        time.sleep(seconds)
        return self._doze(0.0, watched)
