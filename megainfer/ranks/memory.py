"""The road between ranks of one host, on CPUs: memory that all of them have.

Rank 0 copies the rows into it and says so; the others compute from there, and write what they make
into parts of their own, where rank 0 reads it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megainfer.ranks.layout import Field
from megainfer.ranks.orders import FollowedOrders, Orders
from megainfer.ranks.road import LOADING_SECONDS, MESSAGE, Given
from megainfer.ranks.shared import Shared


class Views:
    """Rows of fields in a memory; which are asked for again and again."""

    def __init__(self, shared: Shared[Any]) -> None:
        self._shared = shared
        self._whole: dict[Field, Tensor] = {}

    def of(self, field: Field, rows: int) -> Tensor:
        """The first so many."""
        whole = self._whole.get(field)
        if whole is None:
            whole = self._whole[field] = self._shared.field(field)
        return whole[:rows]

    def write(self, given: Given) -> None:
        """Into its place."""
        put(self.of(given.field, given.rows), given)


class LeadingMemory:
    """`road.LeadingRoad`. name: its node's, for errors."""

    def __init__(self, shared: Shared[Any], name: str, spin_seconds: float) -> None:
        self._views = Views(shared)
        self.orders = Orders(shared.memory, shared.layout.ranks, name, spin_seconds)
        self._made: Sequence[Field] = ()
        self._rows = 0

    def await_loaded(self) -> None:
        """See `LeadingRoad`."""
        self.orders.await_all(LOADING_SECONDS)

    def begin(
        self, order: Sequence[int], given: Sequence[Given] = (), made: Sequence[Field] = ()
    ) -> None:
        """See `LeadingRoad`."""
        self.orders.await_all()
        for each in given:
            self._views.write(each)
        self._made, self._rows = made, given[0].rows if given else 0
        self.orders.say(order)

    def results(self) -> Sequence[Tensor]:
        """See `LeadingRoad`."""
        self.orders.await_all()
        return [self._views.of(field, self._rows) for field in self._made]

    def message(self) -> None:
        """See `LeadingRoad`."""
        self.begin((MESSAGE,))

    def check(self) -> None:
        """See `LeadingRoad`: who takes results waits for them."""

    def close(self) -> None:
        """See `LeadingRoad`: the memory goes with the processes."""


class FollowingMemory:
    """`road.FollowingRoad`."""

    def __init__(self, shared: Shared[Any], rank: int, spin_seconds: float) -> None:
        self._views = Views(shared)
        self._orders = FollowedOrders(shared.memory, shared.layout.ranks, rank, spin_seconds)

    def wait(self, timeout: float) -> Sequence[int] | None:
        """See `FollowingRoad`."""
        return self._orders.wait(timeout)

    def given(self, field: Field, rows: int) -> Tensor:
        """See `FollowingRoad`."""
        return self._views.of(field, rows)

    def result(self, field: Field, rows: int) -> Tensor:
        """See `FollowingRoad`."""
        return self._views.of(field, rows)

    def done(self) -> None:
        """See `FollowingRoad`."""
        self._orders.done()


def put(place: Tensor, given: Given) -> None:
    """Its pieces into memory of as many rows."""
    if len(given.pieces) == 1:
        place.copy_(given.pieces[0])
    else:
        torch.cat(list(given.pieces), out=place)
