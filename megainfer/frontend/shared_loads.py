"""What all front ends have in flight, so that limits hold and nodes are loaded evenly over all.

A table of numbers in memory that forked processes share. Each front end writes its own row only,
and every number is stored at once, so nobody locks.
"""

from mmap import mmap

MAX_NODES = 1023
"""Attention nodes whose loads are told to others."""
_COLUMNS = 1 + MAX_NODES  # sequences, then each node's tokens
_BYTES = 8


class SharedLoads:
    """Of so many front ends; made before they are forked."""

    def __init__(self, front_ends: int) -> None:
        self._count = front_ends
        self._memory = mmap(-1, front_ends * _COLUMNS * _BYTES)
        self._table = memoryview(self._memory).cast("q", (front_ends, _COLUMNS))

    def of(self, front_end: int) -> "FrontEndLoad":
        """The row of one, empty again: whoever had it before is gone, and its requests with it."""
        for column in range(_COLUMNS):
            self._table[front_end, column] = 0
        others = [row for row in range(self._count) if row != front_end]
        return FrontEndLoad(self._table, front_end, others)


class FrontEndLoad:
    """One front end's row, and the sums of the others'."""

    def __init__(self, table: memoryview, own: int, others: list[int]) -> None:
        self._table = table
        self._own = own
        self._others = others

    def set_sequences(self, sequences: int) -> None:
        """So many are in flight of this one."""
        self._table[self._own, 0] = sequences

    def others_sequences(self) -> int:
        return sum(self._table[row, 0] for row in self._others)

    def set_tokens(self, node: int, tokens: int) -> None:
        """So many are outstanding of this one at an attention node."""
        if node < MAX_NODES:
            self._table[self._own, 1 + node] = tokens

    def others_tokens(self, node: int) -> int:
        if node >= MAX_NODES:
            return 0
        return sum(self._table[row, 1 + node] for row in self._others)
