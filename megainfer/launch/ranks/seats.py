"""What the ranks of a node have in common, made before they are forked, and each one's share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol

from megainfer.launch.control import ChildLink, ParentLink, link_pair
from megainfer.launch.heartbeat import Page
from megainfer.ranks.shared import AnyLayout, Shared

if TYPE_CHECKING:  # torch, which who only makes seats doesn't need
    from megainfer.device import Device
    from megainfer.m2n.dist.listening import Address, TcpListener
    from megainfer.ranks.dist.meeting import Terms
    from megainfer.ranks.road import FollowingRoad, LeadingRoad

    Leader = tuple[Terms, Address]


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Door:
    """Where ranks of other hosts come to. ranks: these."""

    terms: "Terms"
    ranks: tuple[int, ...]
    listener: "TcpListener"


@dataclass(frozen=True, slots=True)
class LeadingSeat(Generic[AnyLayout]):
    """links: to the other ranks, from 1 on, in order. door: None where all are on this host."""

    shared: Shared[AnyLayout]
    links: tuple[ChildLink, ...]
    door: Door | None = None

    @property
    def layout(self) -> AnyLayout:
        """Of what ranks tell each other."""
        return self.shared.layout

    def road(
        self,
        name: str,
        spin_seconds: float,
        device: "Device | None" = None,
        page: Page | None = None,
    ) -> "LeadingRoad":
        """To the other ranks; name: their node's, for errors. device: where they compute, None: on
        the host. page: where this process announces until when its work should be done."""
        from megainfer.ranks.dist.leading import LeadingHosts
        from megainfer.ranks.group import LeadingGroup
        from megainfer.ranks.memory import LeadingMemory

        if device is not None and not device.is_host:
            return LeadingGroup(self.shared, device, name, spin_seconds)
        if self.door is None:
            return LeadingMemory(self.shared, name, spin_seconds)
        door = self.door
        terms, ranks, listener = door.terms, door.ranks, door.listener
        return LeadingHosts(self.shared, terms, ranks, listener, spin_seconds, page)


@dataclass(frozen=True, slots=True)
class FollowingSeat(Generic[AnyLayout]):
    """link: to rank 0, which speaks there as the supervisor does to nodes. leader: where that is,
    None where on this host."""

    shared: Shared[AnyLayout]
    rank: int
    link: ParentLink
    leader: "Leader | None" = None

    @property
    def layout(self) -> AnyLayout:
        """Of what ranks tell each other."""
        return self.shared.layout

    def road(
        self, spin_seconds: float, device: "Device | None" = None, page: Page | None = None
    ) -> "FollowingRoad":
        """To rank 0; device, page: as `LeadingSeat.road`."""
        from megainfer.ranks.dist.following import FollowingElsewhere
        from megainfer.ranks.group import FollowingGroup
        from megainfer.ranks.memory import FollowingMemory

        if device is not None and not device.is_host:
            return FollowingGroup(self.shared, device, self.rank, spin_seconds)
        if self.leader is not None:
            return FollowingElsewhere(self.shared, self.rank, *self.leader, page)
        return FollowingMemory(self.shared, self.rank, spin_seconds)


class RankSeats(Generic[AnyLayout]):
    """Of all ranks of one node. door: for those of other hosts, whose links lead to who stands in
    for them."""

    def __init__(self, layout: AnyLayout, door: Door | None = None) -> None:
        self._door = door
        self._shared = Shared.create(layout)
        self._pairs = [link_pair() for _ in range(1, layout.ranks)]

    @property
    def leading(self) -> LeadingSeat[AnyLayout]:
        """Rank 0's."""
        return LeadingSeat(self._shared, tuple(ours for ours, _ in self._pairs), self._door)

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
        return [*leading, *others, *self._doors]

    def close(self) -> None:
        """Where they were made, once all ranks are forked."""
        for held in (*(link for pair in self._pairs for link in pair), *self._doors):
            held.close()
        self._shared.close()

    @property
    def _doors(self) -> "list[TcpListener]":
        return [] if self._door is None else [self._door.listener]
