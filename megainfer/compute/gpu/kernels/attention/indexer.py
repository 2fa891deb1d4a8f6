"""Choosing the positions that a query attends to (DeepSeek-V3.2's sparse attention).

Scores of some rows for all positions that they see lie in memory for a moment; then each row's best
are found by their bits, eight at a time from the highest (radix select), and listed in ascending
order. Of equal scores the earliest positions are chosen.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor, float32, int32

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.kernels.attention.paged_attention import sequence_of
from megainfer.compute.gpu.kernels.attention.rotary import rotated
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device

_WORKSPACE = 256 << 20
"""Bytes that scores may take at once."""
_TOKENS = 8
"""Of a prompt, which share the loads of keys."""


class IndexQueries(NamedTuple):
    """What the T rows of a step ask: queries q [T, h, d] whose first r channels have yet to be
    rotated, by rotary [positions, 2, r]; weights, float32 [T, h]; positions, int64 [T]."""

    q: Tensor
    weights: Tensor
    rotary: Tensor
    positions: Tensor


@triton.jit
def _block_of(
    block, starts_ptr, first_row, sequences, SINGLE: tl.constexpr, TOKENS: tl.constexpr
):  # fmt: skip
    """As `sequence_of`, also for sequences of one row each."""
    if SINGLE:
        return block, first_row + block, block * 0 + 1, block * 0
    return sequence_of(block, starts_ptr, first_row, sequences, TOKENS)


@triton.jit(
    do_not_specialize=["first_block", "first_row", "sequences", "table_stride", "width"],
    do_not_specialize_on_alignment=["positions_ptr", "starts_ptr", "table_ptr"],
)
def _score(
    q_ptr, weights_ptr, rotary_ptr, cache_ptr, positions_ptr, starts_ptr, table_ptr, scores_ptr,
    first_block, first_row, sequences, table_stride, width,
    SINGLE: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, ROTATED: tl.constexpr,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, ALL_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    sequence, start, rows, token = _block_of(
        first_block + tl.program_id(0), starts_ptr, first_row, sequences, SINGLE, TOKENS
    )
    count = tl.minimum(TOKENS, rows - token)
    if count <= 0:
        return
    first = tl.load(positions_ptr + start + token).to(tl.int32)
    keys = tl.program_id(1) * TILE + tl.arange(0, TILE)
    if tl.program_id(1) * TILE >= first + count:
        return
    there = keys < first + count
    channels, head = tl.arange(0, CHANNELS), tl.arange(0, ALL_HEADS)
    block = tl.load(table_ptr + sequence.to(tl.int64) * table_stride + keys // BLOCK, mask=there)
    at = (block * BLOCK + keys % BLOCK) * DIM
    within = there[:, None] & (channels < DIM)
    k = tl.load(cache_ptr + at[:, None] + channels, mask=within, other=0.0)
    for each in range(count):
        row = (start + token + each).to(tl.int64)
        q = rotated(
            q_ptr + ((row * HEADS + head) * DIM)[:, None],
            rotary_ptr + tl.maximum(first + each, 0) * (2 * ROTATED),
            channels[None, :], (head < HEADS)[:, None] & (channels < DIM), ROTATED,
        )  # fmt: skip
        weights = tl.load(weights_ptr + row * HEADS + head, mask=head < HEADS, other=0.0)
        products = tl.dot(q.to(k.dtype), tl.trans(k), input_precision="ieee")
        scores = tl.sum(tl.maximum(products, 0.0) * weights[:, None], 0)
        line = (tl.program_id(0) * TOKENS + each).to(tl.int64)
        tl.store(scores_ptr + line * width + keys, scores, mask=there)


@triton.jit
def _code(score_ptr, there):
    """Scores as numbers without a sign, in the same order."""
    score = tl.load(score_ptr, mask=there, other=0.0)
    score = tl.where(score == 0.0, 0.0, score)  # which has two signs
    bits = score.to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit(
    do_not_specialize=["first_block", "first_row", "sequences", "width"],
    do_not_specialize_on_alignment=["positions_ptr", "starts_ptr"],
)
def _choose(
    scores_ptr, positions_ptr, starts_ptr, chosen_ptr, first_block, first_row, sequences, width,
    SINGLE: tl.constexpr, TOP_K: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    _, start, rows, first = _block_of(
        first_block + tl.program_id(0), starts_ptr, first_row, sequences, SINGLE, TOKENS
    )
    token = first + tl.program_id(1)
    if token >= rows:
        return
    count = tl.load(positions_ptr + start + token).to(tl.int32) + 1
    scores_ptr += (tl.program_id(0) * TOKENS + tl.program_id(1)).to(tl.int64) * width
    chosen_ptr += (start + token - first_row).to(tl.int64) * TOP_K
    i = tl.arange(0, TILE)
    if count <= TOP_K:
        for begin in range(0, count, TILE):
            tl.store(chosen_ptr + begin + i, begin + i, mask=begin + i < count)
    else:
        digits = tl.arange(0, 256)
        # What is known of the last that is wanted: its highest bits, and how many are wanted of
        # those that have the same.
        least, known = tl.zeros((1,), tl.uint32), tl.zeros((1,), tl.uint32)
        wanted = tl.full((1,), TOP_K, tl.int32)
        for step in range(4):
            shift = tl.cast(24 - 8 * step, tl.uint32)
            counts = tl.zeros((256,), tl.int32)
            for begin in range(0, count, TILE):
                there = begin + i < count
                code = _code(scores_ptr + begin + i, there)
                digit = ((code >> shift) & 255).to(tl.int32)
                counts += tl.histogram(digit, 256, mask=there & ((code & known) == least))
            above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
            # The largest digit with enough at or above it.
            last = tl.max(tl.where(above + counts >= wanted, digits, 0), 0)
            wanted -= tl.sum(tl.where(digits == last, above, 0), 0)
            least |= last.to(tl.uint32) << shift
            known |= tl.full((1,), 255, tl.uint32) << shift
        taken, equal = tl.zeros((1,), tl.int32), tl.zeros((1,), tl.int32)
        for begin in range(0, count, TILE):
            there = begin + i < count
            code = _code(scores_ptr + begin + i, there)
            same = (there & (code == least)).to(tl.int32)
            early = equal + tl.cumsum(same, 0) <= wanted
            take = there & ((code > least) | ((same > 0) & early))
            order = tl.cumsum(take.to(tl.int32), 0)
            tl.store(chosen_ptr + taken + order - 1, begin + i, mask=take)
            taken += tl.sum(take.to(tl.int32), 0)
            equal += tl.sum(same, 0)


def choose_positions(
    device: Device, queries: IndexQueries, cache: Tensor, span: Span, top_k: int
) -> Tensor:
    """Of the positions up to each of the span's rows, the `top_k` best, all where there are no
    more: int32 [rows, top_k], ascending; what lies behind fewer is undefined.

    cache: [N, B, d], the keys. A position's score is the sum over heads of weight * relu(q . k).
    """
    _, heads, dim = queries.q.shape
    chosen = device.empty((span.num_rows, top_k), int32)
    single = span.most_rows == 1
    tokens = 1 if single else _TOKENS
    blocks = span.count if single else span.num_rows // tokens + span.count
    width = span.context
    at_once = max(1, min(blocks, _WORKSPACE // (4 * tokens * width)))
    scores = device.empty((at_once * tokens, width), float32)
    for first in range(0, blocks, at_once):
        some = min(at_once, blocks - first)
        launch(
            device, _score, (some, parts_of(width, 64)),
            queries.q, queries.weights, queries.rotary, cache, queries.positions,
            span.row_starts, span.block_table, scores,
            first, span.rows.start, span.count, span.block_table.stride(0), width,
            SINGLE=single, HEADS=heads, DIM=dim, ROTATED=queries.rotary.shape[-1],
            BLOCK=cache.shape[1], TOKENS=tokens, ALL_HEADS=max(16, power_of_two(heads)),
            CHANNELS=max(16, power_of_two(dim)), TILE=64, num_stages=2,
            writes=(scores,),
        )  # fmt: skip
        launch(
            device, _choose, (some, tokens),
            scores, queries.positions, span.row_starts, chosen,
            first, span.rows.start, span.count, width,
            SINGLE=single, TOP_K=top_k, TOKENS=tokens, TILE=2048, num_warps=8,
            writes=(chosen,),
        )  # fmt: skip
    return chosen
