"""How a node waits, in C++."""

import weakref
from collections.abc import Sequence
from ctypes import addressof

from megainfer.m2n.slotted.native_end import NativeEnd
from megainfer.m2n.slotted.native_library import PollFd
from megainfer.m2n.slotted.sleeper import OwnBell, Watched


class NativeSleeper:
    """`sleeper.Sleeper` in C++: it spins only as long as recent waits say that it pays, and tells
    senders when they needn't ring."""

    def __init__(self, end: NativeEnd, bell: OwnBell, spin_seconds: float) -> None:
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
