"""What the ranks of a node have in common, made before they are forked, and each one's share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol

from megainfer.launch.control import ChildLink, ParentLink, link_pair
from megainfer.ranks.shared import AnyLayout, Shared

if TYPE_CHECKING:  # torch, which who only makes seats doesn't need
    from megainfer.ranks.road import FollowingRoad, LeadingRoad


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LeadingSeat(Generic[AnyLayout]):
    """links: to the other ranks, from 1 on, in order."""

    shared: Shared[AnyLayout]
    links: tuple[ChildLink, ...]

    @property
    def layout(self) -> AnyLayout:
        """Of what ranks tell each other."""
        return self.shared.layout

    def road(self, name: str, spin_seconds: float) -> "LeadingRoad":
        """To the other ranks; name: their node's, for errors."""
        from megainfer.ranks.memory import LeadingMemory

        return LeadingMemory(self.shared, name, spin_seconds)


@dataclass(frozen=True, slots=True)
class FollowingSeat(Generic[AnyLayout]):
    """link: to rank 0, which speaks there as the supervisor does to nodes."""

    shared: Shared[AnyLayout]
    rank: int
    link: ParentLink

    @property
    def layout(self) -> AnyLayout:
        """Of what ranks tell each other."""
        return self.shared.layout

    def road(self, spin_seconds: float) -> "FollowingRoad":
        """To rank 0."""
        from megainfer.ranks.memory import FollowingMemory

        return FollowingMemory(self.shared, self.rank, spin_seconds)


class RankSeats(Generic[AnyLayout]):
    """Of all ranks of one node."""

    def __init__(self, layout: AnyLayout) -> None:
        self._shared = Shared.create(layout)
        self._pairs = [link_pair() for _ in range(1, layout.ranks)]

    @property
    def leading(self) -> LeadingSeat[AnyLayout]:
        """Rank 0's."""
        return LeadingSeat(self._shared, tuple(ours for ours, _ in self._pairs))

    def following(self, rank: int) -> FollowingSeat[AnyLayout]:
        """Of any other rank."""
        return FollowingSeat(self._shared, rank, self._pairs[rank - 1][1])

    @property
    def others(self) -> list[FollowingSeat[AnyLayout]]:
        """Of all others, in order."""
        return [self.following(rank) for rank in range(1, len(self._pairs) + 1)]

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
