"""Rows into payloads and out of replies, of all nodes in a single pass over a step's tokens."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.launching import launch_through
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device
from megainfer.m2n.mailbox import Part

_TILE = 1024

Payload = tuple[Tensor, Tensor, Tensor, Tensor]
"""Hidden [R, D], local ids int32 [R, K], weights float32 [R, K], and count int32 [1]."""


@triton.jit
def _place(places, token):
    # Which of a part's rows this token is, or -1; all are rows where there are no places.
    return token if places is None else tl.load(places + token).to(tl.int64)


@triton.jit
def _pack(
    hidden_ptr, places, ids, weights, counts, to_hidden, to_ids, to_weights, to_counts, size,
    K: tl.constexpr, K_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = channels < size
    row = tl.load(hidden_ptr + token * size + channels, mask=exists, other=0.0)
    for n in tl.static_range(len(ids)):
        place = _place(places[n], token)
        tl.store(to_hidden[n] + place * size + channels, row, mask=exists & (place >= 0))
    if tl.program_id(1) == 0:
        # What a part says of its rows is in order already, padding too: row by row.
        at = token * K + tl.arange(0, K_TILE)
        is_slot = tl.arange(0, K_TILE) < K
        for n in tl.static_range(len(ids)):
            tl.store(to_ids[n] + at, tl.load(ids[n] + at, mask=is_slot), mask=is_slot)
            tl.store(to_weights[n] + at, tl.load(weights[n] + at, mask=is_slot), mask=is_slot)
            if token == 0:
                if counts[n] is None:
                    tl.store(to_counts[n], tl.num_programs(0))
                else:
                    tl.store(to_counts[n], tl.load(counts[n]))


@triton.jit
def _add(out_ptr, places, replies, size, TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = channels < size
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    at = out_ptr + token * size + channels
    sums = tl.load(at, mask=exists, other=0.0)
    for n in tl.static_range(len(replies)):
        place = _place(places[n], token)
        row = replies[n] + place * size + channels
        reply = tl.load(row, mask=exists & (place >= 0), other=0.0)
        # Rounded each time, as if replies were added one after the other.
        sums = (sums.to(tl.float32) + reply.to(tl.float32)).to(dtype)
    tl.store(at, sums, mask=exists)


class KernelPacking:
    """M2N's `Packing`. Parts are those of a plan by kernels: T rows each, with their places unless
    all of them count."""

    def pack(
        self, device: Device, hidden: Tensor, parts: Sequence[Part], into: Sequence[Payload]
    ) -> None:
        """Write each part's rows of hidden [T, D], its choices and its count into the payload of
        the same place; behind the rows that count, hidden states stay what they were."""
        _check(parts, len(hidden))
        top_k, size = parts[0].local_ids.shape[1], hidden.shape[1]
        ids, weights = tuple(p.local_ids for p in parts), tuple(p.weights for p in parts)
        payloads = tuple(zip(*into, strict=True))
        launch_through(
            device, _pack, _grid(hidden),
            hidden, _places(parts), ids, weights, tuple(p.count for p in parts), *payloads, size,
            K=top_k, K_TILE=power_of_two(top_k), TILE=_tile(size),
            reads=_tensors(parts), writes=[tensor for payload in into for tensor in payload],
        )  # fmt: skip

    def add(
        self, device: Device, parts: Sequence[Part], replies: Sequence[Tensor], out: Tensor
    ) -> None:
        """Add the rows of replies [T, D] that count to those rows of out [T, D], part after part,
        rounded each time; what is behind them is not read."""
        _check(parts, len(out))
        size = out.shape[1]
        launch_through(
            device, _add, _grid(out),
            out, _places(parts), tuple(replies), size,
            TILE=_tile(size),
            reads=[*_tensors(parts), *replies], writes=(out,),
        )  # fmt: skip


def _check(parts: Sequence[Part], num_tokens: int) -> None:
    for part in parts:
        assert len(part.rows) == num_tokens, "a part of fewer rows is no plan of kernels"
        assert part.count is None or part.places is not None, "counted rows have no places"


def _places(parts: Sequence[Part]) -> tuple[Tensor | None, ...]:
    return tuple(part.places for part in parts)


def _tensors(parts: Sequence[Part]) -> list[Tensor]:
    return [tensor for part in parts for tensor in part if tensor is not None]


def _grid(rows: Tensor) -> tuple[int, int]:
    tokens, size = rows.shape
    return tokens, parts_of(size, _tile(size))


def _tile(size: int) -> int:
    whole = power_of_two(size)
    return min(_TILE, whole)
