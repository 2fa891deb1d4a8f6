"""Attention over cached latents, all heads to the same rows (the absorbed form), for single tokens
and for prompts' chunks alike.

A program takes some heads of some rows of one sequence through the cached rows, a tile after the
other, in segments as those of `paged_attention`, whose second kernel joins them. Where an indexer
has chosen which of the cached rows a query sees, it sees its list of them instead, in which its
place is what its position is else; then a program has one row.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor, float32

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.kernels.attention.joining import join
from megainfer.compute.gpu.kernels.attention.paged_attention import sequence_of
from megainfer.compute.gpu.kernels.attention.rotary import rotated
from megainfer.compute.gpu.kernels.attention.segments import Programs, segments_of
from megainfer.compute.gpu.kernels.attention.softmax import LOG2_E, averaged, begun, joined
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device
from megainfer.models.spec import MlaSpec

_STAGES, _STAGES_CHOSEN = 5, 7
"""Of the pipeline: two tiles are on their way while blocks of the next two are looked up, and
before those what is chosen."""


@triton.jit
def _segment(
    q, turned, own, latents, ropes, cache_ptr, table_ptr, chosen_ptr, begin, end, scale,
    CHOSEN: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The softmax of queries, q [rows, latents] and their `turned` channels [rows, ropes], in
    places `own` [rows], over cached rows in places from `begin` to `end`."""
    top, total, sums = begun(q.shape[0], q.shape[1])
    for first in range(begin, end, TILE):
        places = first + tl.arange(0, TILE)
        there = places < end
        positions = tl.load(chosen_ptr + places, mask=there, other=0) if CHOSEN else places
        block = tl.load(table_ptr + positions // BLOCK, mask=there, other=0)
        at = cache_ptr + ((block * BLOCK + positions % BLOCK) * (RANK + ROPE))[:, None]
        # What nobody wrote may not be finite, and 0 * NaN is NaN.
        latent = tl.load(at + latents, mask=there[:, None] & (latents < RANK), other=0.0)
        key = tl.load(at + RANK + ropes, mask=there[:, None] & (ropes < ROPE), other=0.0)
        scores = tl.dot(q, tl.trans(latent), input_precision="ieee")
        scores = tl.dot(turned, tl.trans(key), scores, input_precision="ieee") * scale
        seen = there[None, :] & (places[None, :] <= own[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        best = tl.maximum(top, tl.max(scores, 1))
        powers, kept = tl.exp2(scores - best[:, None]), tl.exp2(top - best)
        total = tl.fma(total, kept, tl.sum(powers, 1))
        sums = tl.dot(powers.to(latent.dtype), latent, sums * kept[:, None], input_precision="ieee")
        top = best
    return top, total, sums


@triton.jit(
    do_not_specialize=["all_rows", "first_row", "sequences", "table_stride", "segment", "splits"],
    do_not_specialize_on_alignment=["positions_ptr", "starts_ptr", "table_ptr"],
)
def _attend(
    q_ptr, both_ptr, rotary_ptr, cache_ptr, positions_ptr, starts_ptr, table_ptr, chosen_ptr,
    out_ptr, sums_ptr, states_ptr,
    all_rows, first_row, sequences, table_stride, scale, segment, splits,
    SINGLE: tl.constexpr, SPLIT: tl.constexpr, WHOLE: tl.constexpr, CHOSEN: tl.constexpr,
    TOP_K: tl.constexpr, H: tl.constexpr, NOPE: tl.constexpr, RANK: tl.constexpr,
    ROPE: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, RANKS: tl.constexpr, ROPES: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(2)
    if SINGLE:
        sequence = tl.program_id(0)
        start, rows, token = first_row + sequence, sequence * 0 + 1, sequence * 0
    else:
        # The last blocks of a prompt see the most rows, and should not be the last to begin.
        block = tl.num_programs(0) - 1 - tl.program_id(0)
        sequence, start, rows, token = sequence_of(block, starts_ptr, first_row, sequences, TOKENS)
        if token >= rows:
            return
    # Only the first one's position is asked for: a chunk's follow each other.
    position = tl.load(positions_ptr + start + token).to(tl.int32)
    count = tl.minimum(TOKENS, rows - token)
    lane = tl.arange(0, ROWS)
    row, head = start + token + lane // HEADS, tl.program_id(1) * HEADS + lane % HEADS
    real = (lane < count * HEADS) & (head < H)
    own = position + lane // HEADS
    high = position + count
    if CHOSEN:
        own, high = tl.minimum(own, TOP_K - 1), tl.minimum(high, TOP_K)
        chosen_ptr += (start + token - first_row).to(tl.int64) * TOP_K
    own = tl.where(real, own, -1)
    latents, ropes = tl.arange(0, RANKS)[None, :], tl.arange(0, ROPES)[None, :]
    exists = real[:, None] & (latents < RANK)
    wide = row.to(tl.int64)
    q_at = ((head.to(tl.int64) * all_rows + wide) * RANK)[:, None]
    q = tl.load(q_ptr + q_at + latents, mask=exists, other=0.0)
    turned = rotated(
        both_ptr + ((wide * H + head) * (NOPE + ROPE) + NOPE)[:, None],
        rotary_ptr + (tl.maximum(position + lane // HEADS, 0) * (2 * ROPE))[:, None],
        ropes, real[:, None] & (ropes < ROPE), ROPE,
    )  # fmt: skip
    turned = turned.to(q.dtype)
    table_ptr += sequence.to(tl.int64) * table_stride
    if SPLIT:
        begin = split * segment
        if begin >= high:
            return
        top, total, sums = _segment(
            q, turned, own, latents, ropes, cache_ptr, table_ptr, chosen_ptr,
            begin, tl.minimum(begin + segment, high), scale, CHOSEN, RANK, ROPE, BLOCK, TILE,
        )  # fmt: skip
        place = ((wide - first_row) * splits + split) * H + head
        tl.store(sums_ptr + place[:, None] * RANK + latents, sums, mask=exists)
        tl.store(states_ptr + 2 * place, top, mask=real)
        tl.store(states_ptr + 2 * place + 1, total, mask=real)
    else:
        if WHOLE:
            top, total, sums = _segment(
                q, turned, own, latents, ropes, cache_ptr, table_ptr, chosen_ptr,
                0, high, scale, CHOSEN, RANK, ROPE, BLOCK, TILE,
            )  # fmt: skip
        else:
            top, total, sums = begun(ROWS, RANKS)
            for begin in range(0, high, segment):
                other_top, other_total, other_sums = _segment(
                    q, turned, own, latents, ropes, cache_ptr, table_ptr, chosen_ptr,
                    begin, tl.minimum(begin + segment, high), scale,
                    CHOSEN, RANK, ROPE, BLOCK, TILE,
                )  # fmt: skip
                top, total, sums = joined(top, total, sums, other_top, other_total, other_sums)
        values = averaged(total, sums).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + ((wide * H + head) * RANK)[:, None] + latents, values, mask=exists)


class LatentQueries(NamedTuple):
    """What the T rows of a step attend with.

    projected: [H, T, R], queries in the space of latents. both: [T, H, n + r], of whose heads the
    last r channels have yet to be rotated, by rotary [positions, 2, r]. positions: int64 [T]; a row
    at -1 is padding, and attends to nothing.
    """

    projected: Tensor
    both: Tensor
    rotary: Tensor
    positions: Tensor


def attend_latents(
    device: Device,
    spec: MlaSpec,
    queries: LatentQueries,
    cache: Tensor,
    span: Span,
    chosen: Tensor | None,
    out: Tensor,
    invariant: bool = False,
) -> None:
    """Fill the span's rows of out [T, H, R] with sums of latents; the cache [N, B, R + r] has its
    tokens already.

    chosen: int32 [rows of the span, top_k], the positions that each row sees, of as many as there
    are up to its own; where it is None, a row sees all of them. Scores and sums are float32.
    invariant: tiles and segments are the same for any step, so that a row's result is the same bits
    whatever it is computed with.
    """
    heads, single = spec.num_heads, span.most_rows == 1
    sparse, top_k = chosen is not None, 0 if chosen is None else chosen.shape[1]
    rows = _rows(heads if single or sparse else heads * span.most_rows, invariant)
    at_once, tokens = min(heads, rows), 1 if single or sparse else max(1, rows // heads)
    blocks = span.count if single else span.num_rows // tokens + span.count
    parts = parts_of(heads, at_once)
    places = min(span.context, top_k) if sparse else span.context
    programs = Programs(
        blocks * parts,
        device.processors,  # a program each, which has nearly all of its registers
        span.num_rows * heads * (spec.kv_lora_rank + 2) * 4,
    )
    segments = segments_of(places, places, programs, invariant)
    split = segments.programs > 1
    sums_shape = (span.num_rows, segments.programs, heads) if split else (0, 0, 0)
    sums = device.empty((*sums_shape, spec.kv_lora_rank), float32)
    states = device.empty((*sums_shape, 2), float32)
    launch(
        device, _attend, (blocks, parts, segments.programs),
        queries.projected, queries.both, queries.rotary, cache, queries.positions,
        span.row_starts, span.block_table, span.row_starts if chosen is None else chosen,
        out, sums, states,
        len(queries.positions), span.rows.start, span.count, span.block_table.stride(0),
        spec.scale * LOG2_E.value, segments.length, segments.programs,
        SINGLE=single, SPLIT=split, WHOLE=not invariant,
        CHOSEN=sparse, TOP_K=top_k, H=heads, NOPE=spec.nope_dim, RANK=spec.kv_lora_rank,
        ROPE=spec.rope_dim, BLOCK=cache.shape[1], TOKENS=tokens, HEADS=at_once,
        ROWS=rows, TILE=64 // cache.itemsize,
        RANKS=_tile(spec.kv_lora_rank), ROPES=_tile(spec.rope_dim),
        num_warps=8, num_stages=_STAGES_CHOSEN if sparse else _STAGES,
        writes=(sums, states) if split else (out,),
    )  # fmt: skip
    if split:
        own = queries.positions.clamp(max=top_k - 1) if sparse else queries.positions
        join(
            device, (sums, states, own, sums, sums, out), span.rows, 0, segments,
            {
                "SINKS": False, "GATED": False, "WINDOW": None, "CHUNK": None,
                "H": heads, "D": spec.kv_lora_rank, "CHANNELS": _tile(spec.kv_lora_rank),
            },
        )  # fmt: skip


def _tile(channels: int) -> int:
    """A power of two that a tensor core's product takes."""
    return max(16, power_of_two(channels))


def _rows(wanted: int, invariant: bool) -> int:
    """Of a tile of queries, which with the sums of 512 channels fill registers."""
    return 16 if invariant or wanted <= 16 else 32
