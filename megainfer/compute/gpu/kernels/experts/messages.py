"""Messages of a gather, whose rows are computed together where they lie: a table of pointers.

Rows are numbered through all messages in a row, and so are choices, K a row. Nothing is joined or
copied, since rows lie far apart in slots that peers have filled, and answers go into others.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.launching import launch
from megainfer.device import Device

ALIGNMENT = 16
"""Bytes, of what is read in vectors."""

# Fields of a table's line.
FIELDS = tl.constexpr(7)
HIDDEN = tl.constexpr(0)
IDS = tl.constexpr(1)
WEIGHTS = tl.constexpr(2)
OUT = tl.constexpr(3)
FIRST = tl.constexpr(4)
_ROWS = tl.constexpr(5)
_COUNT = tl.constexpr(6)


class Messages(NamedTuple):
    """table: int64 [messages, 7], on the device: addresses of hidden states, ids, weights and out,
    the number of the first row, how many rows there may be, and the address of how many count (0:
    all do). rows: R of all messages together. dtype, row_bytes: of hidden states and outs. reads,
    writes: the tensors behind the addresses. aligned: rows of hidden states and of outs begin at
    multiples of ALIGNMENT.
    """

    table: Tensor
    rows: int
    top_k: int
    dtype: torch.dtype
    row_bytes: int
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    aligned: bool

    @property
    def lines(self) -> int:
        """Of the table."""
        return self.table.shape[0]

    @classmethod
    def of(
        cls,
        device: Device,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None],
    ) -> Self:
        """At least one message, as for `LayerExperts.forward`, all of whose tensors are
        contiguous."""
        lines = lines_of(hidden, local_ids, weights, outs, counts)
        width = hidden[0].shape[1] * hidden[0].element_size()
        only = (hidden[0], local_ids[0], weights[0], outs[0], counts[0])
        return cls(
            _table_of_one(device, *only) if len(lines) == 1 else device.upload(_int64(lines)),
            sum(x.shape[0] for x in hidden),
            local_ids[0].shape[1],
            hidden[0].dtype,
            width,
            (*hidden, *local_ids, *weights, *(own for own in counts if own is not None)),
            tuple(outs),
            width % ALIGNMENT == 0 and are_aligned(lines),
        )


def _int64(lines: Sequence["Line"]) -> Tensor:
    return torch.tensor(lines, dtype=torch.int64)


# Compiled once: whatever is aligned, and whether or not there is a count.
@triton.jit(
    do_not_specialize=["rows", "counted"],
    do_not_specialize_on_alignment=["x_ptr", "ids_ptr", "weights_ptr", "out_ptr", "count_ptr"],
)
def _point(table_ptr, x_ptr, ids_ptr, weights_ptr, out_ptr, count_ptr, rows, counted):
    tl.store(table_ptr + HIDDEN, x_ptr.to(tl.int64))
    tl.store(table_ptr + IDS, ids_ptr.to(tl.int64))
    tl.store(table_ptr + WEIGHTS, weights_ptr.to(tl.int64))
    tl.store(table_ptr + OUT, out_ptr.to(tl.int64))
    tl.store(table_ptr + FIRST, 0)
    tl.store(table_ptr + _ROWS, rows)
    tl.store(table_ptr + _COUNT, tl.where(counted != 0, count_ptr.to(tl.int64), 0))


def _table_of_one(
    device: Device, x: Tensor, ids: Tensor, weights: Tensor, out: Tensor, count: Tensor | None
) -> Tensor:
    """By the device itself, so that whole steps can be recorded, in which nothing goes up."""
    table, counts = device.empty((1, FIELDS.value), torch.int64), ids if count is None else count
    launch(
        device, _point, (1,),
        table, x, ids, weights, out, counts, x.shape[0], int(count is not None),
        writes=(table,),
    )  # fmt: skip
    return table


Line = list[int]
"""Of a table, in the order of its fields."""


def lines_of(
    hidden: Sequence[Tensor],
    local_ids: Sequence[Tensor],
    weights: Sequence[Tensor],
    outs: Sequence[Tensor],
    counts: Sequence[Tensor | None],
) -> list[Line]:
    """One a message."""
    lines, first = list[Line](), 0
    for x, ids, weight, out, count in zip(hidden, local_ids, weights, outs, counts, strict=True):
        _check(x, ids, weight, out, count)
        at = 0 if count is None else count.data_ptr()
        pointers = (x.data_ptr(), ids.data_ptr(), weight.data_ptr(), out.data_ptr())
        lines.append([*pointers, first, x.shape[0], at])
        first += x.shape[0]
    return lines


def are_aligned(lines: Sequence[Line]) -> bool:
    """Whether hidden states and outs begin where `ALIGNMENT` says."""
    return all(line[0] % ALIGNMENT == line[3] % ALIGNMENT == 0 for line in lines)


def _check(x: Tensor, ids: Tensor, weights: Tensor, out: Tensor, count: Tensor | None) -> None:
    assert x.shape == out.shape
    assert x.shape[0] == ids.shape[0]
    assert ids.shape == weights.shape
    assert x.dtype == out.dtype
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    assert all(tensor.is_contiguous() for tensor in (x, ids, weights, out))
    assert count is None or count.dtype == torch.int32


@triton.jit
def message_of(table_ptr, messages, rows):
    """Which message these rows are of, by their numbers: a tile or one."""
    found = rows * 0
    for message in range(1, messages):
        found += (rows >= tl.load(table_ptr + message * FIELDS + FIRST)).to(tl.int32)
    return found


@triton.jit
def row_within(table_ptr, message, rows):
    """int64: the rows' numbers within their messages; negative where they are padding, which no
    host knows."""
    line_ptr = table_ptr + message * FIELDS
    own = rows - tl.load(line_ptr + FIRST)
    most = tl.load(line_ptr + _ROWS)
    address = tl.load(line_ptr + _COUNT)
    counts = address.to(tl.pointer_type(tl.int32))
    count = tl.load(counts, mask=address != 0, other=0).to(tl.int64)
    count = tl.where(address != 0, tl.minimum(count, most), most)
    return tl.where(own < count, own, -1)
