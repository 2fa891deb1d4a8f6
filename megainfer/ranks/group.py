"""The road between ranks that compute on devices of one host: collectives of all of them.

Hosts tell each other what is to be done as on CPUs, by words and an order in memory that all have.
Rows go at their place in the streams' work, so no host waits for a device: rank 0 broadcasts them,
and gathers what the others have made. It is gathered and then added, not reduced, since a reduction
adds in an order that depends on how much there is of it: a row's bits would depend on its company.
"""

from collections.abc import Sequence
from math import prod
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.errors import NodeDied
from megainfer.ranks.collectives import Collectives
from megainfer.ranks.layout import Field, meeting_offsets
from megainfer.ranks.meeting import MeetingStore
from megainfer.ranks.memory import Views, put
from megainfer.ranks.orders import FollowedOrders, Orders
from megainfer.ranks.road import ANSWER_SECONDS, LOADING_SECONDS, MESSAGE, Given
from megainfer.ranks.shared import Shared

_MEET = -2
"""In place of what an order is about: all have loaded, and make their group."""


class LeadingGroup:
    """`road.LeadingRoad`. name: its node's, for errors."""

    def __init__(self, shared: Shared[Any], device: Device, name: str, spin_seconds: float) -> None:
        self._shared, self._views, self._device = shared, Views(shared), device
        self.orders = Orders(shared.memory, shared.layout.ranks, name, spin_seconds)
        self._places, self._watch = _Places(device), _Watch(device, name)
        self._group: Collectives | None = None
        self._made: Sequence[Field] = ()  # by an order whose results were not taken
        self._rows = 0

    def await_loaded(self) -> None:
        """See `LeadingRoad`."""
        self.orders.await_all(LOADING_SECONDS)
        self.orders.say((_MEET,))
        self._group = _meet(self._shared, self._device, rank=0)

    def begin(
        self, order: Sequence[int], given: Sequence[Given] = (), made: Sequence[Field] = ()
    ) -> None:
        """See `LeadingRoad`."""
        if self._made:  # of what rank 0 failed to compute
            self.results()
        self.orders.await_all()
        for each in given:
            if each.field.on_host:
                self._views.write(each)
        self.orders.say(order)
        for each in given:
            if not each.field.on_host and each.rows:
                self._met.broadcast(self._payload(each))
        self._made, self._rows = made, given[0].rows if given else 0

    def results(self) -> Sequence[Tensor]:
        """See `LeadingRoad`."""
        made, self._made = self._made, ()
        parts = self._places.alike(made[0], self._rows, 1 + len(made))
        if self._rows:
            self._met.gather(parts[0], parts)
            self._watch.mark()
        return [_own(part, field) for field, part in zip(made, parts[1:], strict=True)]

    def message(self) -> None:
        """See `LeadingRoad`."""
        self.begin((MESSAGE,))

    def check(self) -> None:
        """See `LeadingRoad`."""
        self._watch.check()

    def close(self) -> None:
        """See `LeadingRoad`."""
        if self._group is not None:
            self._group.abort()

    def _payload(self, given: Given) -> Tensor:
        """Its rows, where they are if they lie together."""
        field, (first, *others) = given.field, given.pieces
        if not others and first.dtype is _dtype(field) and first.is_contiguous():
            return first
        place = self._places.of(field, given.rows)
        put(_own(place, field), given)
        return place

    @property
    def _met(self) -> Collectives:
        assert self._group is not None, "all have loaded before there are orders"
        return self._group


class FollowingGroup:
    """`road.FollowingRoad`."""

    def __init__(self, shared: Shared[Any], device: Device, rank: int, spin_seconds: float) -> None:
        self._shared, self._views, self._device, self._rank = shared, Views(shared), device, rank
        self._orders = FollowedOrders(shared.memory, shared.layout.ranks, rank, spin_seconds)
        self._places = _Places(device)
        self._group: Collectives | None = None
        self._made: Tensor | None = None  # by the latest order

    def wait(self, timeout: float) -> Sequence[int] | None:
        """See `FollowingRoad`."""
        order = self._orders.wait(timeout)
        if order is None or order[0] != _MEET:
            return order
        self._group = _meet(self._shared, self._device, self._rank)
        self._orders.done()
        return None

    def given(self, field: Field, rows: int) -> Tensor:
        """See `FollowingRoad`."""
        if field.on_host:
            return self._views.of(field, rows)
        place = self._places.of(field, rows)
        if rows:
            self._met.broadcast(place)
        return _own(place, field)

    def result(self, field: Field, rows: int) -> Tensor:
        """See `FollowingRoad`."""
        self._made = self._places.of(field, rows)
        return _own(self._made, field)

    def done(self) -> None:
        """See `FollowingRoad`."""
        made, self._made = self._made, None
        if made is not None and len(made):
            self._met.gather(made)
        self._orders.done()

    @property
    def _met(self) -> Collectives:
        assert self._group is not None, "rank 0 gives orders when all have met"
        return self._group


class _Watch:
    """Whether the device gets on, of which no host is told: what waits there for a rank that hangs
    waits for ever."""

    def __init__(self, device: Device, name: str) -> None:
        self._name = name
        self._event = device.event()
        self._since: float | None = None  # when the event was recorded
        self._more = False  # was given since then, which the event doesn't tell of

    def mark(self) -> None:
        """All that the current stream was given so far is to be done in time. Costs no look at the
        device while there is one to come: `check` has that tell of the rest."""
        if self._since is None:
            self._record()
        else:
            self._more = True

    def check(self) -> None:
        """Raises NodeDied where it isn't. In the stream of `mark`."""
        if self._since is None:
            return
        if self._event.done():
            self._since = None
            if self._more:
                self._record()
        elif monotonic() > self._since + ANSWER_SECONDS:
            raise NodeDied(f"the ranks of {self._name} have not got on for {ANSWER_SECONDS:g} s")

    def _record(self) -> None:
        self._event.record()
        self._since, self._more = monotonic(), False


class _Places:
    """Memory of a device for fields, which is had when it is first asked for, and stays."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: dict[tuple[Field, int], Tensor] = {}

    def of(self, field: Field, rows: int) -> Tensor:
        """[rows, numbers], as many as a row has on any rank."""
        (only,) = self.alike(field, rows, 1)
        return only

    def alike(self, field: Field, rows: int, count: int) -> Sequence[Tensor]:
        """So many of them, one behind the other."""
        dtype = _dtype(field)
        numbers = field.row_bytes // dtype.itemsize
        memory = self._memory.get((field, count))
        if memory is None:
            with torch.inference_mode(False):
                memory = self._device.empty((count * field.rows, numbers), dtype)
            self._memory[field, count] = memory
        return memory[: count * rows].view(count, rows, numbers).unbind()


def _own(place: Tensor, field: Field) -> Tensor:
    """Of rows as wide as on any rank, those numbers that the field has: [rows, ...]."""
    return place[:, : prod(field.shape)].view(len(place), *field.shape)


def _dtype(field: Field) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, field.dtype)
    return dtype


def _meet(shared: Shared[Any], device: Device, rank: int) -> Collectives:
    """The group of all ranks, who call it at about the same time."""
    ranks = shared.layout.ranks
    parts = meeting_offsets(ranks, shared.layout.total_bytes)
    store = MeetingStore(shared.memory, parts, rank, ANSWER_SECONDS)
    return Collectives(device, store, rank, ranks)
