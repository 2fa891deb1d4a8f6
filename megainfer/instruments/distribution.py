"""How often values fall between given bounds: a histogram that costs a bisection a value."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


class Distribution:
    """Counts of values up to each of `bounds` (ascending, inclusive), and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)  # the last: beyond every bound
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def as_dict(self) -> dict[str, Any]:
        """For a node's counters; msgpack-able."""
        return {"bounds": self.bounds, "counts": self.counts, "total": self.total}
