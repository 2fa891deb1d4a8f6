"""How a node waits: for news in its slots, for descriptors, for a deadline."""

import math
import select
import time
import weakref
from collections.abc import Callable, Sequence
from ctypes import addressof
from typing import Protocol

from megainfer.m2n.shm.region import Bell
from megainfer.m2n.slotted.native_end import NativeEnd
from megainfer.m2n.slotted.native_library import PollFd

Watched = tuple[tuple[int, int], ...]
"""(descriptor, events of poll(2)) of each; the node's own bell is among them."""


class Sleeper(Protocol):
    def sleep(self, timeout: float, watched: Watched) -> Sequence[int]:
        """Until there is news, a descriptor is ready or `timeout` seconds have passed; the ready
        ones. A bell that rang is silent afterwards."""


class PlainSleeper:
    """`Sleeper` in Python. It never says that it is awake, so everybody rings."""

    def __init__(self, news: Callable[[], bool], bell: Bell, spin_seconds: float) -> None:
        self._news = news
        self._bell = bell
        self._spin_seconds = spin_seconds
        self._watched: Watched = ()
        self._poller = select.poll()

    def sleep(self, timeout: float, watched: Watched) -> Sequence[int]:
        """See `Sleeper.sleep`."""
        if self._spin(min(timeout, self._spin_seconds)):
            return ()
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


class NativeSleeper:
    """`Sleeper` in C++: it spins only as long as recent waits say that it pays, and tells senders
    when they needn't ring."""

    def __init__(self, end: NativeEnd, bell: Bell, spin_seconds: float) -> None:
        self._end = end  # the sleeper looks at its slots
        self._native = end.native
        self._handle = self._native.megainfer_m2n_sleeper_new(
            end.handle, end.awake_at, bell.fileno(), int(spin_seconds * 1e9)
        )
        weakref.finalize(self, self._native.megainfer_m2n_sleeper_delete, self._handle)
        self._watched: Watched = ()
        self._table = (PollFd * 0)()
        self._table_at = 0

    def sleep(self, timeout: float, watched: Watched) -> Sequence[int]:
        """See `Sleeper.sleep`."""
        if watched is not self._watched:
            self._watch(watched)
        nanoseconds = int(max(timeout, 0.0) * 1e9)
        if not self._native.megainfer_m2n_sleep(
            self._handle, nanoseconds, self._table_at, len(self._watched)
        ):
            return ()
        return [entry.fd for entry in self._table if entry.revents]

    def _watch(self, watched: Watched) -> None:
        table = (PollFd * len(watched))(*(PollFd(fd, events, 0) for fd, events in watched))
        self._watched, self._table, self._table_at = watched, table, addressof(table)
