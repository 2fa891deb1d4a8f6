"""Rows that all ranks of an expert node compute, and the sum of what they make of them.

Rank 0 has rows that no other can see, in M2N's slots. It copies them into the shared memory and
says so; each rank computes with its part of every expert, rank 0 straight from the slots and into
the replies, the others into memory of their own here, which rank 0 adds to its own: in the order of
ranks, whichever was done first, so that the same rows always give the same bits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.orders import FollowedOrders, Orders
from megainfer.ranks.shared import Shared


class Order(NamedTuple):
    """layer: whose experts; `orders.MESSAGE`: none, there is a message. rows: how many."""

    layer: int
    rows: int


class SharedRows:
    """The rows as tensors. hidden: dtype [rows, D]. ids: int32 [rows, K]. weights: float32 [rows,
    K]."""

    def __init__(self, shared: Shared[RowsLayout]) -> None:
        layout = shared.layout
        self._shared = shared
        self._shape = layout.rows, layout.hidden_size
        self._dtype: torch.dtype = getattr(torch, layout.dtype)
        choices = layout.rows, layout.top_k
        self.hidden = shared.tensor(layout.hidden, self._shape, self._dtype)
        self.ids = shared.tensor(layout.ids, choices, torch.int32)
        self.weights = shared.tensor(layout.weights, choices, torch.float32)

    def result(self, rank: int) -> Tensor:
        """dtype [rows, D]."""
        return self._shared.tensor(self._shared.layout.result(rank), self._shape, self._dtype)


class LeadingRows:
    """Rank 0's end. name: its node's, for errors."""

    def __init__(self, shared: Shared[RowsLayout], name: str, spin_seconds: float) -> None:
        ranks = shared.layout.ranks
        self.orders = Orders(shared.memory, ranks, name, spin_seconds)
        self._rows = SharedRows(shared)
        self._results = [self._rows.result(rank) for rank in range(1, ranks)]

    def begin(
        self,
        layer: int,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> None:
        """Have the others compute a layer's experts for these rows: of each message hidden [R, D],
        int32 [R, K] and float32 [R, K]. Raises NodeDied."""
        self.orders.await_all()
        count = sum(map(len, hidden))
        for own, parts in (
            (self._rows.hidden, hidden),
            (self._rows.ids, local_ids),
            (self._rows.weights, weights),
        ):
            torch.cat(list(parts), out=own[:count])
        self.orders.say(*Order(layer, count))

    def add_to(self, outs: Sequence[Tensor]) -> None:
        """Add what the others made of these rows to rank 0's own, [R, D] of each message in turn.
        Raises NodeDied."""
        self.orders.await_all()
        first = 0
        for out in outs:
            total = out.to(torch.float32)  # itself where it is float32
            for result in self._results:
                total += result[first : first + len(out)]
            if total is not out:
                out.copy_(total)
            first += len(out)


class FollowingRows:
    """The end of any other rank."""

    def __init__(self, shared: Shared[RowsLayout], rank: int, spin_seconds: float) -> None:
        self._orders = FollowedOrders(shared.memory, shared.layout.ranks, rank, spin_seconds)
        rows = SharedRows(shared)
        self.hidden, self.ids, self.weights = rows.hidden, rows.ids, rows.weights
        self.result = rows.result(rank)

    def done(self) -> None:
        """The latest order, or loading."""
        self._orders.done()

    def wait(self, timeout: float) -> Order | None:
        """The next order; None where there was none within `timeout` seconds."""
        found = self._orders.wait(timeout)
        return None if found is None else Order(*found[:2])
