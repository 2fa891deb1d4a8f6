"""What rank 0 tells the others to do, one thing at a time, and how far each of them is.

An order is a few numbers in memory that all share; its number is in rank 0's word, and each rank
that has done it says that number in its own. So rank 0 may write the next when all have said the
last, and nobody else ever writes where another reads.
"""

from collections.abc import Sequence
from mmap import mmap

import torch
from torch import Tensor

from megainfer.errors import NodeDied
from megainfer.ranks.layout import ORDER_NUMBERS, order_offset, word_offset
from megainfer.ranks.road import ANSWER_SECONDS
from megainfer.ranks.words import Words

LOADED = 1
"""What a rank says first. Orders are numbered from here on."""


class Orders:
    """Rank 0's end. ranks: how many there are. others: that read orders here, all unless given.
    name: its node's, for errors."""

    def __init__(
        self,
        memory: mmap,
        ranks: int,
        name: str,
        spin_seconds: float,
        others: Sequence[int] | None = None,
    ) -> None:
        self._name = name
        self._others = range(1, ranks) if others is None else others
        self._words = _words(memory, ranks, 0, spin_seconds)
        self._order = _order(memory, ranks)
        self._number = LOADED

    def await_all(self, timeout: float = ANSWER_SECONDS) -> None:
        """Until every rank has done all that it was told; raises NodeDied where one hasn't within
        `timeout` seconds."""
        for rank in self._others:
            if not self._words.wait(rank, self._number, timeout):
                raise NodeDied(f"rank {rank} of {self._name} has not answered for {timeout:g} s")

    def say(self, order: Sequence[int]) -> None:
        """The next order, once all have done the last one."""
        for place, number in enumerate(order):
            self._order[place] = number
        self._number += 1
        self._words.say(self._number)


class FollowedOrders:
    """The end of any other rank."""

    def __init__(self, memory: mmap, ranks: int, rank: int, spin_seconds: float) -> None:
        self._words = _words(memory, ranks, rank, spin_seconds)
        self._order = _order(memory, ranks)
        self._number = 0

    def done(self) -> None:
        """The latest order, or loading."""
        self._number += 1
        self._words.say(self._number)

    def wait(self, timeout: float) -> Sequence[int] | None:
        """The next order, `ORDER_NUMBERS` of which only the first may mean something; None where
        there was none within `timeout` seconds."""
        if not self._words.wait(0, self._number + 1, timeout):
            return None
        found: list[int] = self._order.tolist()
        return found


def _words(memory: mmap, ranks: int, rank: int, spin_seconds: float) -> Words:
    return Words(memory, [word_offset(each) for each in range(ranks)], rank, spin_seconds)


def _order(memory: mmap, ranks: int) -> Tensor:
    offset = order_offset(ranks)
    return torch.frombuffer(memory, dtype=torch.int64, count=ORDER_NUMBERS, offset=offset)
