"""The seam between what the ranks of a node compute and how they tell each other.

Rank 0 gives an order, and with it the rows that it is about; each of the others computes, and has
made rows of its own. Tensors are where the ranks compute, and whatever is done to them is done at
its place in the current stream's work: only what an order is about is known to hosts.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from megainfer.ranks.layout import Field

LOADING_SECONDS = 3600.0
"""A death meanwhile is noticed at once, by the supervisor."""
ANSWER_SECONDS = 60.0
"""A rank that dies takes its node with it at once, and one that hangs is noticed by the supervisor;
this only bounds what a fault of our own could cost."""
MESSAGE = -1
"""In place of what an order is about: there is a message on the rank's link."""
MESSAGE_SECONDS = 15.0
"""On one host a message is there before the order that tells of it; between hosts each takes a way
of its own."""


class Given(NamedTuple):
    """What goes with an order. pieces: [R, ...] each, one behind the other, of the field's dtype;
    where there is one only, of any."""

    field: Field
    pieces: Sequence[Tensor]

    @property
    def rows(self) -> int:
        return sum(map(len, self.pieces))


class LeadingRoad(Protocol):
    """Rank 0's end."""

    def await_loaded(self) -> None:
        """Until all have their weights. Raises NodeDied."""

    def begin(
        self, order: Sequence[int], given: Sequence[Given] = (), made: Sequence[Field] = ()
    ) -> None:
        """The next order, of at most `layout.ORDER_NUMBERS`, once all have done the last one. made:
        of each other rank, in order, what it will make, as many rows as are given. What is given
        may be written to as soon as this has returned. Raises NodeDied."""

    def results(self) -> Sequence[Tensor]:
        """What each of the others has made by the latest order, in the order of ranks; valid until
        the next is begun. Raises NodeDied."""

    def message(self) -> None:
        """Each rank has a message on its link. Raises NodeDied."""

    def check(self) -> None:
        """Raises NodeDied where results have not come for ANSWER_SECONDS, which nobody need be
        waiting for."""

    def close(self) -> None:
        """There are no more orders."""


class FollowingRoad(Protocol):
    """The end of any other rank."""

    def wait(self, timeout: float) -> Sequence[int] | None:
        """The next order, `layout.ORDER_NUMBERS` of which those behind what it is about mean
        nothing; None where there was none within `timeout` seconds. Raises NodeDied."""

    def given(self, field: Field, rows: int) -> Tensor:
        """What came with the latest order. Each field of it is asked for once, in the order in
        which they were given."""

    def result(self, field: Field, rows: int) -> Tensor:
        """Where what this rank makes by the latest order is to be written."""

    def done(self) -> None:
        """The latest order, or loading. Raises NodeDied."""
