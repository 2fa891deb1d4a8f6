"""How far each rank of a node is, and waiting for it."""

import weakref
from ctypes import addressof, c_char
from mmap import mmap

from megainfer.ranks import native_library

_ROUND = 1 << 32


class Words:
    """The words of all ranks, as one of them reads and waits; one thread at a time.

    memory: whose first lines they are, one each. rank: whose own word it is. spin_seconds: for how
    long a wait may keep its core busy before it sleeps; only as long as waits of late say that it
    pays.

    Raises ConfigError where the native part isn't built.
    """

    def __init__(self, memory: mmap, offsets: list[int], rank: int, spin_seconds: float) -> None:
        self._native = native_library.load()
        self._memory = memory  # kept for as long as there are addresses of it
        first = addressof(c_char.from_buffer(memory))
        self._addresses = [first + offset for offset in offsets]
        self._own = self._addresses[rank]
        self._waiter = self._native.megainfer_ranks_waiter_new(int(spin_seconds * 1e9))
        weakref.finalize(self, self._native.megainfer_ranks_waiter_delete, self._waiter)

    def say(self, number: int) -> None:
        """This rank is so far; whatever it wrote before can be read by who finds that."""
        self._native.megainfer_ranks_say(self._own, number % _ROUND)

    def wait(self, rank: int, number: int, timeout: float) -> bool:
        """Whether that rank is so far, at the latest after `timeout` seconds."""
        return bool(
            self._native.megainfer_ranks_wait(
                self._waiter, self._addresses[rank], number % _ROUND, int(max(timeout, 0.0) * 1e9)
            )
        )
