"""What the ranks of a node have in common, made before they are forked, and each one's share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megainfer.launch.control import ChildLink, ParentLink, link_pair
from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.rows import RowsMemory


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LeadingSeat:
    """links: to the other ranks, from 1 on, in order."""

    shared: RowsMemory
    links: tuple[ChildLink, ...]


@dataclass(frozen=True, slots=True)
class FollowingSeat:
    """link: to rank 0, which speaks there as the supervisor does to nodes."""

    shared: RowsMemory
    rank: int
    link: ParentLink


class RankSeats:
    """Of all ranks of one node."""

    def __init__(self, layout: RowsLayout) -> None:
        self._shared = RowsMemory.create(layout)
        self._pairs = [link_pair() for _ in range(1, layout.ranks)]

    @property
    def leading(self) -> LeadingSeat:
        """Rank 0's."""
        return LeadingSeat(self._shared, tuple(ours for ours, _ in self._pairs))

    def following(self, rank: int) -> FollowingSeat:
        """Of any other rank."""
        return FollowingSeat(self._shared, rank, self._pairs[rank - 1][1])

    def not_of(self, rank: int) -> Sequence[Closable]:
        """What this rank's process must not hold."""
        if rank == 0:
            return [theirs for _, theirs in self._pairs]
        leading = [ours for ours, _ in self._pairs]
        others = [pair[1] for other, pair in enumerate(self._pairs, 1) if other != rank]
        return [*leading, *others]

    def close(self) -> None:
        """Where they were made, once all ranks are forked."""
        for link in (link for pair in self._pairs for link in pair):
            link.close()
        self._shared.close()
