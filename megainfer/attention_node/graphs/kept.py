"""What a recorded stage leaves for experts."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, uint8

from megainfer.attention_node.model import MoEPoint
from megainfer.device import Device
from megainfer.m2n.mailbox import Part

_ALIGNMENT = 16
"""Bytes: kernels are compiled for whether memory is aligned so, and once is enough."""


class _Place(NamedTuple):
    """Where a part's field lies: `at` numbers of its dtype behind the first. whole: it isn't one
    entry a row."""

    node: int
    field: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int
    whole: bool


class KeptPoint:
    """A MoEPoint at fixed places, its parts in one run of bytes: what the host takes away of them
    for a step is taken in one copy.

    point: one like those that will come; nodes whose parts have no rows are sent none. hidden:
    [B, D].
    """

    def __init__(self, point: MoEPoint, device: Device) -> None:
        self.hidden = device.empty(point.hidden.shape, point.hidden.dtype)
        self._places = list[_Place]()
        size = 0
        for node, field, values in _fields(point.parts):
            whole, itemsize = field == Part._fields.index("count"), values.itemsize
            place = _Place(node, field, values.dtype, tuple(values.shape), size // itemsize, whole)
            self._places.append(place)
            size += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._nodes = len(point.parts)
        self._memory = device.empty((size,), uint8)
        self._views = [*self._looks(self._memory, None)]

    def fill(self, point: MoEPoint) -> None:
        """In what is recorded."""
        self.hidden.copy_(point.hidden)
        fields = _fields(point.parts)
        for (_, view), (_, _, values) in zip(self._views, fields, strict=True):
            view.copy_(values)

    def parts(self, rows: int) -> list[Part]:
        """The first so many rows of each part, which are the caller's from here on."""
        found: list[list[Tensor | None]] = [[None] * len(Part._fields) for _ in range(self._nodes)]
        for place, view in self._looks(self._memory.clone(), rows):
            found[place.node][place.field] = view
        return [Part._make(fields) for fields in found]

    def _looks(self, memory: Tensor, rows: int | None) -> Iterator[tuple[_Place, Tensor]]:
        """Each field in it, so many rows of it or all."""
        typed = {dtype: memory.view(dtype) for dtype in {place.dtype for place in self._places}}
        for place in self._places:
            first = place.shape[:1] if rows is None or place.whole else (rows,)
            shape = (*first, *place.shape[1:])
            strides = [prod(place.shape[axis + 1 :]) for axis in range(len(shape))]
            yield place, typed[place.dtype].as_strided(shape, strides, place.at)


def _fields(parts: Sequence[Part]) -> Iterator[tuple[int, int, Tensor]]:
    """Node, number of the field, and values, of all that parts with rows have."""
    for node, part in enumerate(parts):
        if part.rows.numel():
            yield from ((node, n, values) for n, values in enumerate(part) if values is not None)
