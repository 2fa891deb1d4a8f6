"""Rows that all ranks of an expert node compute, and the sum of what they make of them.

Rank 0 has rows that no other can see, in M2N's slots. It tells them to the others; each rank
computes with its part of every expert, rank 0 straight from the slots and into the replies, to
which it adds what the others have made: in the order of ranks, whichever was done first, so that
the same rows always give the same bits.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.road import FollowingRoad, Given, LeadingRoad
from megainfer.ranks.sums import add_in_order


class Order(NamedTuple):
    """layer: whose experts; `road.MESSAGE`: none, there is a message. rows: how many."""

    layer: int
    rows: int


class LeadingRows:
    """Rank 0's end."""

    def __init__(self, road: LeadingRoad, layout: RowsLayout) -> None:
        self._road = road
        self._fields = layout.given
        self._made = [layout.result(rank) for rank in range(1, layout.ranks)]

    def begin(
        self,
        layer: int,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> None:
        """Have the others compute a layer's experts for these rows: of each message hidden [R, D],
        int32 [R, K] and float32 [R, K]. Raises NodeDied."""
        parts = zip(self._fields, (hidden, local_ids, weights), strict=True)
        order = Order(layer, sum(map(len, hidden)))
        self._road.begin(order, [Given(*each) for each in parts], self._made)

    def add_to(self, outs: Sequence[Tensor]) -> None:
        """Add what the others made of these rows to rank 0's own, [R, D] of each message in turn.
        Raises NodeDied."""
        results = self._road.results()
        first = 0
        for out in outs:
            add_in_order(out, [result[first : first + len(out)] for result in results])
            first += len(out)


class FollowingRows:
    """The end of any other rank."""

    def __init__(self, road: FollowingRoad, layout: RowsLayout, rank: int) -> None:
        self._road = road
        self._fields = layout.given
        self._made = layout.result(rank)

    def wait(self, timeout: float) -> Order | None:
        """The next order; None where there was none within `timeout` seconds."""
        found = self._road.wait(timeout)
        return None if found is None else Order(*found[:2])

    def given(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [R, D], ids int32 [R, K] and weights float32 [R, K] of the latest order."""
        hidden, ids, weights = (self._road.given(field, rows) for field in self._fields)
        return hidden, ids, weights

    def result(self, rows: int) -> Tensor:
        """Where its own of these rows is to be written, [R, D]."""
        return self._road.result(self._made, rows)

    def done(self) -> None:
        """The latest order, or loading."""
        self._road.done()
