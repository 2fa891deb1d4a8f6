"""The kernels of attention over a paged cache, for single tokens and for prompts' chunks alike.

A program takes some rows of one sequence with all query heads that share a key head, and goes
through the keys that any of them sees, a tile after the other, in segments which begin at multiples
of their length: each has a softmax of its own, and they are joined in order. Where there are too
few programs for a GPU, each segment gets one, and a second kernel joins them.
"""

import triton
import triton.language as tl

from megainfer.compute.gpu.kernels.attention.softmax import (
    LOWEST,
    averaged,
    begun,
    begun_with,
    first_key,
    joined,
)


@triton.jit
def sequence_of(block, starts_ptr, first_row, sequences, TOKENS: tl.constexpr):
    """Whose rows a block of TOKENS has: the sequence, its first row, its rows, and which of them
    the block's first is.

    Sequence s has the blocks from (its first row) // TOKENS + s on, of which the last may be empty:
    so nobody needs to know how many those before it have.
    """
    upto = block * 0
    for begin in range(0, sequences, 64):
        each = begin + tl.arange(0, 64)
        starts = tl.load(starts_ptr + each, mask=each < sequences, other=0) - first_row
        before = (each < sequences) & (starts // TOKENS + each <= block)
        upto += tl.sum(before.to(tl.int32), 0)
    sequence = upto - 1
    start = tl.load(starts_ptr + sequence)
    rows = (tl.load(starts_ptr + sequence + 1) - start).to(tl.int32)
    token = (block - ((start - first_row) // TOKENS + sequence)) * TOKENS
    return sequence, start.to(tl.int32), rows, token.to(tl.int32)


@triton.jit
def _segment(
    top, total, sums, q, own, kv_head, channels, k_ptr, v_ptr, table_ptr, begin, end, low, scale,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A softmax of q [rows, channels] at positions `own` [rows] goes on over keys from `begin` to
    `end`, of which those before `low` are nobody's."""
    for first in range(tl.maximum(begin, low // TILE * TILE), end, TILE):
        keys = first + tl.arange(0, TILE)
        there = (keys >= low) & (keys < end)
        block = tl.load(table_ptr + keys // BLOCK, mask=there, other=0)
        at = ((block * BLOCK + keys % BLOCK) * HKV + kv_head)[:, None] * D + channels[None, :]
        # What nobody wrote may not be finite, and 0 * NaN is NaN.
        exists = there[:, None] & (channels < D)[None, :]
        k = tl.load(k_ptr + at, mask=exists, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = there[None, :] & (keys[None, :] <= own[:, None])
        if WINDOW is not None:
            seen &= keys[None, :] > own[:, None] - WINDOW
        if CHUNK is not None:
            seen &= keys[None, :] // CHUNK == own[:, None] // CHUNK
        scores = tl.where(seen, scores, float("-inf"))
        best = tl.maximum(top, tl.max(scores, 1))
        powers, kept = tl.exp2(scores - best[:, None]), tl.exp2(top - best)
        v = tl.load(v_ptr + at, mask=exists, other=0.0)
        total = tl.fma(total, kept, tl.sum(powers, 1))
        sums = tl.dot(powers.to(v.dtype), v, sums * kept[:, None], input_precision="ieee")
        top = best
    return top, total, sums


@triton.jit
def store_gated(
    out_ptr, gates_ptr, values, rows, heads, channels, exists, gates_stride,
    H: tl.constexpr, D: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Values [n, channels] go to heads of rows, both [n], of out [T, H, D]."""
    rows, heads, channels = rows.to(tl.int64)[:, None], heads[:, None], channels[None, :]
    values = values.to(out_ptr.dtype.element_ty)
    if GATED:
        at = rows * gates_stride + (2 * heads + 1) * D + channels
        gate = tl.load(gates_ptr + at, mask=exists, other=0.0).to(tl.float32)
        values *= tl.sigmoid(gate).to(values.dtype)
    tl.store(out_ptr + (rows * H + heads) * D + channels, values, mask=exists)


@triton.jit(
    do_not_specialize=["first_row", "sequences", "table_stride", "segment", "splits"],
    do_not_specialize_on_alignment=["positions_ptr", "starts_ptr", "table_ptr"],
)
def attend(
    q_ptr, k_ptr, v_ptr, positions_ptr, starts_ptr, table_ptr, sinks_ptr, gates_ptr,
    out_ptr, sums_ptr, states_ptr,
    first_row, sequences, table_stride, gates_stride, scale, segment, splits,
    SINGLE: tl.constexpr, SPLIT: tl.constexpr, JOINED: tl.constexpr, SINKS: tl.constexpr,
    GATED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    kv_head, split = tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = H // HKV
    tokens: tl.constexpr = ROWS // group
    if SINGLE:
        sequence = tl.program_id(0)
        start, rows, token = first_row + sequence, sequence * 0 + 1, sequence * 0
    else:
        # The last blocks of a prompt see the most keys, and should not be the last to begin.
        block = tl.num_programs(0) - 1 - tl.program_id(0)
        sequence, start, rows, token = sequence_of(block, starts_ptr, first_row, sequences, tokens)
        if token >= rows:
            return
    # Of the rows only the first one's position is asked for: a chunk's follow each other.
    position = tl.load(positions_ptr + start + token).to(tl.int32)
    count = tl.minimum(tokens, rows - token)
    low, high = first_key(position, WINDOW, CHUNK), position + count
    lane = tl.arange(0, ROWS)
    row, head = start + token + lane // group, kv_head * group + lane % group
    is_row = lane < count * group
    own = tl.where(is_row, position + lane // group, -1)
    channels = tl.arange(0, CHANNELS)
    exists = is_row[:, None] & (channels < D)[None, :]
    at = (row.to(tl.int64) * H + head)[:, None] * D + channels[None, :]
    q = tl.load(q_ptr + at, mask=exists, other=0.0)
    table_ptr += sequence.to(tl.int64) * table_stride
    if SPLIT:
        # The only segment of those at hand that leaves this remainder, if any does.
        first = low // segment
        begin = (first + (split + splits - first % splits) % splits) * segment
        if begin >= high:
            return
        top, total, sums = begun(ROWS, CHANNELS)
        top, total, sums = _segment(
            top, total, sums, q, own, kv_head, channels, k_ptr, v_ptr, table_ptr,
            begin, tl.minimum(begin + segment, high), low, scale,
            WINDOW, CHUNK, HKV, D, BLOCK, TILE,
        )  # fmt: skip
        place = ((row - first_row).to(tl.int64) * splits + split) * H + head
        tl.store(sums_ptr + place[:, None] * D + channels[None, :], sums, mask=exists)
        tl.store(states_ptr + 2 * place, top, mask=is_row)
        tl.store(states_ptr + 2 * place + 1, total, mask=is_row)
    else:
        if SINKS:
            top, total, sums = begun_with(sinks_ptr, head, is_row, CHANNELS)
        else:
            top, total, sums = begun(ROWS, CHANNELS)
        if JOINED:
            for begin in range(low // segment * segment, high, segment):
                new_top, new_total, new_sums = begun(ROWS, CHANNELS)
                new_top, new_total, new_sums = _segment(
                    new_top, new_total, new_sums, q, own, kv_head, channels,
                    k_ptr, v_ptr, table_ptr, begin, tl.minimum(begin + segment, high), low, scale,
                    WINDOW, CHUNK, HKV, D, BLOCK, TILE,
                )  # fmt: skip
                top, total, sums = joined(top, total, sums, new_top, new_total, new_sums)
        else:
            top, total, sums = _segment(
                top, total, sums, q, own, kv_head, channels, k_ptr, v_ptr, table_ptr,
                0, high, low, scale, WINDOW, CHUNK, HKV, D, BLOCK, TILE,
            )  # fmt: skip
        store_gated(
            out_ptr, gates_ptr, averaged(total, sums), row, head, channels, exists,
            gates_stride, H, D, GATED,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=["first_row", "segment", "splits"],
    do_not_specialize_on_alignment=["positions_ptr"],
)
def join_segments(
    sums_ptr, states_ptr, positions_ptr, sinks_ptr, gates_ptr, out_ptr,
    first_row, gates_stride, segment, splits,
    SINKS: tl.constexpr, GATED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """What `attend` has stored of one row's segments, [T, splits, H, ...], HEADS of them; AT_ONCE
    segments are on their way together."""
    row = tl.program_id(0)
    head, channels = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, CHANNELS)
    exists = (head < H)[:, None] & (channels < D)[None, :]
    position = tl.load(positions_ptr + first_row + row).to(tl.int32)
    if SINKS:
        top, total, sums = begun_with(sinks_ptr, head, head < H, CHANNELS)
    else:
        top, total, sums = begun(HEADS, CHANNELS)
    first = first_key(position, WINDOW, CHUNK) // segment
    end = (position + segment) // segment
    for begin in range(first, end, AT_ONCE):
        for more in tl.static_range(AT_ONCE):
            each = begin + more
            there = (head < H) & (each < end)
            place = (row.to(tl.int64) * splits + each % splits) * H + head
            # Of no keys where there is none, which changes no bit.
            other_top = tl.load(states_ptr + 2 * place, mask=there, other=LOWEST)
            other_total = tl.load(states_ptr + 2 * place + 1, mask=there, other=0.0)
            at = place[:, None] * D + channels[None, :]
            other_sums = tl.load(sums_ptr + at, mask=exists & (each < end), other=0.0)
            top, total, sums = joined(top, total, sums, other_top, other_total, other_sums)
    store_gated(
        out_ptr, gates_ptr, averaged(total, sums), first_row + row + head * 0, head, channels,
        exists, gates_stride, H, D, GATED,
    )  # fmt: skip
