"""How a node waits: for news in its slots, for descriptors, for a deadline."""

import math
import select
import time
from collections.abc import Callable, Sequence
from typing import Protocol

Watched = tuple[tuple[int, int], ...]
"""(descriptor, events of poll(2)) of each; the node's own bell is among them."""


class OwnBell(Protocol):
    """The bell of the node that sleeps, as a descriptor that is readable once it was rung."""

    def fileno(self) -> int: ...

    def silence(self) -> None: ...


class Sleeper(Protocol):
    def sleep(self, timeout: float, watched: Watched) -> Sequence[int]:
        """Until there is news, a descriptor is ready or `timeout` seconds have passed; the ready
        ones. A bell that rang is silent afterwards."""


class PlainSleeper:
    """`Sleeper` in Python. It never says that it is awake, so everybody rings."""

    def __init__(self, news: Callable[[], bool], bell: OwnBell, spin_seconds: float) -> None:
        self._news = news
        self._bell = bell
        self._spin_seconds = spin_seconds
        self._watched: Watched = ()
        self._poller = select.poll()

    def sleep(self, timeout: float, watched: Watched) -> Sequence[int]:
        """See `Sleeper.sleep`."""
        if self._spin(min(timeout, self._spin_seconds)):
            return ()
        return self._doze(timeout, watched)

    def _doze(self, timeout: float, watched: Watched) -> Sequence[int]:
        """Until a descriptor is ready or `timeout` seconds have passed."""
        self._watch(watched)
        ready = [fd for fd, _ in self._poller.poll(math.ceil(max(timeout, 0.0) * 1000))]
        if self._bell.fileno() in ready:
            self._bell.silence()  # before the caller looks, so that no later ring is lost
        return ready

    def _watch(self, watched: Watched) -> None:
        if watched != self._watched:
            self._poller = select.poll()
            for descriptor, events in watched:
                self._poller.register(descriptor, events)
            self._watched = watched

    def _spin(self, seconds: float) -> bool:
        """Whether there was news within so short a time that sleeping would cost more."""
        if seconds <= 0:
            return False
        deadline = time.monotonic() + seconds
        while not self._news():
            if time.monotonic() >= deadline:
                return False
        return True
