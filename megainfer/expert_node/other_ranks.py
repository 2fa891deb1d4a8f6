"""The other ranks of an expert node with tensor parallelism, as its first one has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from megainfer.device import HOST, Device
from megainfer.m2n.mailbox import Dispatch
from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.rows import LeadingRows
from megainfer.topology import WHOLE, Shard

if TYPE_CHECKING:  # msgspec, without which a node of one rank can be tried on a GPU
    from megainfer.launch.heartbeat import Page
    from megainfer.launch.ranks.seats import LeadingSeat


class OtherRanks(Protocol):
    """Who computes the rest of every expert."""

    def begin(self, layer: int, dispatches: Sequence[Dispatch]) -> None:
        """They compute this layer's experts for these rows. Raises NodeDied."""

    def add_to(self, outs: Sequence[Tensor]) -> None:
        """Add what they made of the rows to this rank's own, one [R, D] a dispatch. Raises
        NodeDied."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank among those of its node. shard: whose part of each expert it has. others: of rank 0,
    the ranks with the other parts; None of one whose results are added by it, or that is alone."""

    shard: Shard = WHOLE
    others: OtherRanks | None = None


ALONE = Rank()
_NOBODY = -1
"""The id of no expert."""


class ExpertRanks:
    """`OtherRanks` over the road of their seat. device, page: as `LeadingSeat.road`. links: what
    the supervisor says goes on there."""

    def __init__(
        self,
        seat: "LeadingSeat[RowsLayout]",
        node: int,
        spin_seconds: float,
        device: Device = HOST,
        page: "Page | None" = None,
    ) -> None:
        from megainfer.launch.ranks.links import RankLinks

        self._road = seat.road(f"expert node {node}", spin_seconds, device, page)
        self._rows = LeadingRows(self._road, seat.layout)
        self.links = RankLinks(seat.links, self._road.message)

    def await_loaded(self) -> None:
        """Until all have their weights. Raises NodeDied."""
        self._road.await_loaded()

    def begin(self, layer: int, dispatches: Sequence[Dispatch]) -> None:
        """See `OtherRanks`."""
        self._rows.begin(
            layer,
            [dispatch.hidden for dispatch in dispatches],
            [_ids_that_count(dispatch) for dispatch in dispatches],
            [dispatch.weights for dispatch in dispatches],
        )

    def add_to(self, outs: Sequence[Tensor]) -> None:
        """See `OtherRanks`."""
        self._rows.add_to(outs)

    def check(self) -> None:
        """Raises NodeDied where they don't get on."""
        self._road.check()

    def close(self) -> None:
        """They are told no more."""
        self.links.close()
        self._road.close()


def _ids_that_count(dispatch: Dispatch) -> Tensor:
    """int32 [R, K]; rows that are padding choose nothing."""
    ids = dispatch.local_ids
    if dispatch.count is None:
        return ids
    rows = torch.arange(len(ids), device=ids.device)
    return ids.masked_fill((rows >= dispatch.count)[:, None], _NOBODY)
