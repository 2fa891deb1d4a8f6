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
    writes: the tensors behind the addresses. aligned: rows of hidden states begin at multiples of
    ALIGNMENT.
    """

    table: Tensor
    rows: int
    top_k: int
    dtype: torch.dtype
    row_bytes: int
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    aligned: bool

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
        lines, first, aligned = [], 0, True
        for x, ids, weight, out, count in zip(
            hidden, local_ids, weights, outs, counts, strict=True
        ):
            _check(x, ids, weight, out, count)
            pointers = [t.data_ptr() for t in (x, ids, weight, out)]
            lines.append([*pointers, first, len(x), 0 if count is None else count.data_ptr()])
            aligned &= pointers[0] % ALIGNMENT == 0
            first += len(x)
        width = hidden[0].shape[1] * hidden[0].element_size()
        known = (count for count in counts if count is not None)
        return cls(
            device.upload(torch.tensor(lines, dtype=torch.int64)),
            first,
            local_ids[0].shape[1],
            hidden[0].dtype,
            width,
            (*hidden, *local_ids, *weights, *known),
            tuple(outs),
            aligned and width % ALIGNMENT == 0,
        )


def _check(x: Tensor, ids: Tensor, weights: Tensor, out: Tensor, count: Tensor | None) -> None:
    assert x.shape == out.shape
    assert len(x) == len(ids)
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
