"""Rows into messages and out of replies, each a single pass over a step's tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.launching import launch
from megainfer.device import Device
from megainfer.m2n.mailbox import Part

_TILE = 1024


class Message(NamedTuple):
    """Memory of a dispatch of R rows: hidden [R, D], local ids int32 [R, K], weights float32
    [R, K], count int32 [1], contiguous."""

    hidden: Tensor
    local_ids: Tensor
    weights: Tensor
    count: Tensor  # type: ignore[assignment]  # a tuple's count() is no use here


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


def pack(
    device: Device, hidden: Tensor, parts: Sequence[Part], messages: Sequence[Message]
) -> None:
    """Write the rows of hidden [T, D] that parts name, and what the parts say of them, into the
    message of each. Rows behind a part's count keep the hidden states that were there.

    parts: of a plan by kernels, those that have T rows.
    """
    if not parts:
        return
    _check(parts, len(hidden))
    tile = _tile(hidden)
    _, ids, weights, counts, places = zip(*parts, strict=True)
    top_k = ids[0].shape[1]
    launch(
        device, _pack, (len(hidden), triton.cdiv(hidden.shape[1], tile)),
        hidden, places, ids, weights, counts, *zip(*messages, strict=True), hidden.shape[1],
        K=top_k, K_TILE=triton.next_power_of_2(top_k), TILE=tile,
        writes=[tensor for message in messages for tensor in message],
    )  # fmt: skip


@triton.jit
def _combine(x_ptr, places, replies, size, TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = channels < size
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    at = x_ptr + token * size + channels
    x = tl.load(at, mask=exists, other=0.0)
    for n in tl.static_range(len(replies)):
        place = _place(places[n], token)
        row = replies[n] + place * size + channels
        reply = tl.load(row, mask=exists & (place >= 0), other=0.0)
        # Rounded each time, as if replies were added one after the other.
        x = (x.to(tl.float32) + reply.to(tl.float32)).to(dtype)
    tl.store(at, x, mask=exists)


def combine(device: Device, x: Tensor, parts: Sequence[Part], replies: Sequence[Tensor]) -> None:
    """Add replies, [T, D] to each part, into x [T, D] in the order of parts. Of a reply nothing
    behind its part's count is read.

    parts: of a plan by kernels, those that have T rows.
    """
    if not parts:
        return
    _check(parts, len(x))
    tile = _tile(x)
    launch(
        device, _combine, (len(x), triton.cdiv(x.shape[1], tile)),
        x, tuple(part.places for part in parts), tuple(replies), x.shape[1],
        TILE=tile,
        writes=(x,),
    )  # fmt: skip


def _tile(rows: Tensor) -> int:
    whole: int = triton.next_power_of_2(rows.shape[1])
    return min(_TILE, whole)


def _check(parts: Sequence[Part], num_tokens: int) -> None:
    for part in parts:
        assert len(part.rows) == num_tokens, "a part of fewer rows was not made by kernels"
