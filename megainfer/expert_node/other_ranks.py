"""The other ranks of an expert node with tensor parallelism, as its first one has them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.launch.rank_seats import LeadingSeat
from megainfer.m2n.mailbox import Dispatch
from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Enter, Prepare
from megainfer.ranks.rows import LeadingRows
from megainfer.topology import WHOLE, Membership, Shard

LOOK_SECONDS = 0.02
"""How often one that has nothing to do looks for what the others have prepared."""
LOADING_SECONDS = 3600.0
"""A death meanwhile is noticed at once, by the supervisor."""


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


class ExpertRanks:
    """`OtherRanks` over memory that processes of one host share. What the supervisor says to the
    node is passed on to them, and the node says `Prepared` when all have."""

    def __init__(self, seat: LeadingSeat, node: int, spin_seconds: float) -> None:
        self._links = seat.links
        self._rows = LeadingRows(seat.shared, f"expert node {node}", spin_seconds)
        self._ticket: int | None = None  # of what is being prepared
        self._said: dict[int, str | None] = {}  # by rank, why it can't enter that

    def await_loaded(self) -> None:
        """Until all have their weights. Raises NodeDied."""
        self._rows.await_all(LOADING_SECONDS)

    def begin(self, layer: int, dispatches: Sequence[Dispatch]) -> None:
        """See `OtherRanks`."""
        self._rows.begin(
            layer,
            [dispatch.hidden for dispatch in dispatches],
            [dispatch.local_ids for dispatch in dispatches],
            [dispatch.weights for dispatch in dispatches],
        )

    def add_to(self, outs: Sequence[Tensor]) -> None:
        """See `OtherRanks`."""
        self._rows.add_to(outs)

    def enter(self, membership: Membership) -> None:
        """They do, before they compute anything else."""
        self._tell(Enter(membership))

    def prepare(self, wish: Prepare) -> None:
        """They do, beside what they compute."""
        self._ticket, self._said = wish.ticket, {}
        self._tell(wish)

    def agreed(self, own: Sequence[Prepared]) -> Iterator[Prepared]:
        """Of what is prepared what there is to say: once, when all ranks have spoken. own: what
        rank 0 would say for itself."""
        for prepared in own:
            self._hear(0, prepared)
        if self._ticket is None:
            return
        for rank, link in enumerate(self._links, 1):
            while (message := link.receive(timeout=0)) is not None:
                if not isinstance(message, Prepared):
                    raise ProtocolError(f"rank {rank} of an expert node said {message}")
                self._hear(rank, message)
        if len(self._said) > len(self._links):
            errors = [f"rank {rank}: {error}" for rank, error in self._said.items() if error]
            yield Prepared(self._ticket, "; ".join(errors) or None)
            self._ticket = None

    def sleep_bound(self, timeout: float) -> float:
        """Seconds after which there may be something to say, at most `timeout`."""
        return timeout if self._ticket is None else min(timeout, LOOK_SECONDS)

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _hear(self, rank: int, prepared: Prepared) -> None:
        if prepared.ticket == self._ticket:  # else it is of a wish that another has replaced
            self._said[rank] = prepared.error

    def _tell(self, message: Enter | Prepare) -> None:
        for link in self._links:
            link.send(message)
        self._rows.message()
