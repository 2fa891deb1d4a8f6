"""Rows that all ranks of an expert node compute, and the sum of what they make of them.

Rank 0 has rows that no other can see, in M2N's slots. It copies them into the shared memory and
says so; each rank computes with its part of every expert, rank 0 straight from the slots and into
the replies, the others into memory of their own here, which rank 0 adds to its own: in the order of
ranks, whichever was done first, so that the same rows always give the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.errors import NodeDied
from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.words import Words

LOADED = 1
"""What a rank says first. Orders are numbered from here on."""
ANSWER_SECONDS = 60.0
"""A rank that dies takes its node with it at once, and one that hangs is noticed by the supervisor;
this only bounds what a fault of our own could cost."""
MESSAGE = -1
"""In place of a layer: the order is a message on the rank's link."""


class Order(NamedTuple):
    """layer: whose experts; MESSAGE: none, there is a message. rows: how many."""

    layer: int
    rows: int


@dataclass(frozen=True, slots=True)
class RowsMemory:
    """Anonymous memory for a layout, made before ranks are forked."""

    layout: RowsLayout
    memory: mmap

    @classmethod
    def create(cls, layout: RowsLayout) -> "RowsMemory":
        return cls(layout, mmap(-1, layout.total_bytes))

    def words(self, rank: int, spin_seconds: float) -> Words:
        layout = self.layout
        offsets = [layout.word(each) for each in range(layout.ranks)]
        return Words(self.memory, offsets, rank, spin_seconds)

    @property
    def order(self) -> Tensor:
        """int64 [2], an Order."""
        return torch.frombuffer(self.memory, dtype=torch.int64, count=2, offset=self.layout.order)

    @property
    def hidden(self) -> Tensor:
        """dtype [rows, D]."""
        return self._rows(self.layout.hidden)

    def result(self, rank: int) -> Tensor:
        """dtype [rows, D]."""
        return self._rows(self.layout.result(rank))

    @property
    def ids(self) -> Tensor:
        """int32 [rows, K]."""
        return self._choices(torch.int32, self.layout.ids)

    @property
    def weights(self) -> Tensor:
        """float32 [rows, K]."""
        return self._choices(torch.float32, self.layout.weights)

    def close(self) -> None:
        """In a process that has no views of it."""
        self.memory.close()

    def _rows(self, offset: int) -> Tensor:
        layout = self.layout
        dtype: torch.dtype = getattr(torch, layout.dtype)
        return self._matrix(dtype, layout.hidden_size, offset)

    def _choices(self, dtype: torch.dtype, offset: int) -> Tensor:
        return self._matrix(dtype, self.layout.top_k, offset)

    def _matrix(self, dtype: torch.dtype, width: int, offset: int) -> Tensor:
        count = self.layout.rows * width
        flat = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=offset)
        return flat.view(self.layout.rows, width)


class LeadingRows:
    """Rank 0's end. name: its node's, for errors."""

    def __init__(self, shared: RowsMemory, name: str, spin_seconds: float) -> None:
        self._name = name
        self._others = range(1, shared.layout.ranks)
        self._words = shared.words(0, spin_seconds)
        self._order, self._hidden = shared.order, shared.hidden
        self._ids, self._weights = shared.ids, shared.weights
        self._results = [shared.result(rank) for rank in self._others]
        self._number = LOADED

    def await_all(self, timeout: float = ANSWER_SECONDS) -> None:
        """Until every rank has done all that it was told; raises NodeDied where one hasn't within
        `timeout` seconds."""
        for rank in self._others:
            if not self._words.wait(rank, self._number, timeout):
                raise NodeDied(f"rank {rank} of {self._name} has not answered for {timeout:g} s")

    def begin(
        self,
        layer: int,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> None:
        """Have the others compute a layer's experts for these rows: of each message hidden [R, D],
        int32 [R, K] and float32 [R, K]. Raises NodeDied."""
        self.await_all()
        rows = sum(map(len, hidden))
        for own, parts in (
            (self._hidden, hidden),
            (self._ids, local_ids),
            (self._weights, weights),
        ):
            torch.cat(list(parts), out=own[:rows])
        self._say(Order(layer, rows))

    def add_to(self, outs: Sequence[Tensor]) -> None:
        """Add what the others made of these rows to rank 0's own, [R, D] of each message in turn.
        Raises NodeDied."""
        self.await_all()
        first = 0
        for out in outs:
            total = out.to(torch.float32)  # itself where it is float32
            for result in self._results:
                total += result[first : first + len(out)]
            if total is not out:
                out.copy_(total)
            first += len(out)

    def message(self) -> None:
        """Each rank has a message on its link. Raises NodeDied."""
        self.await_all()
        self._say(Order(MESSAGE, 0))

    def _say(self, order: Order) -> None:
        self._order[0], self._order[1] = order
        self._number += 1
        self._words.say(self._number)


class FollowingRows:
    """The end of any other rank."""

    def __init__(self, shared: RowsMemory, rank: int, spin_seconds: float) -> None:
        self._words = shared.words(rank, spin_seconds)
        self._order = shared.order
        self.hidden, self.ids, self.weights = shared.hidden, shared.ids, shared.weights
        self.result = shared.result(rank)
        self._number = 0

    def done(self) -> None:
        """The latest order, or loading."""
        self._number += 1
        self._words.say(self._number)

    def wait(self, timeout: float) -> Order | None:
        """The next order; None where there was none within `timeout` seconds."""
        if not self._words.wait(0, self._number + 1, timeout):
            return None
        layer, rows = self._order.tolist()
        return Order(layer, rows)
