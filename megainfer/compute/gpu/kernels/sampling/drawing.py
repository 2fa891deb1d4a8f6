"""Drawing tokens, each row by a program of its own.

Probabilities are summed as integers, in shares of the likeliest token's: such sums are exact, so
neither the order of adding nor who adds shows in a token. What is cut off is cut by value, so that
tokens that tie are kept or dropped together, as in the reference.

`cut` is a tuple of what makes a logit a share: the row's highest logit, the temperature, the least
scaled logit that min_p keeps, the least logit that top_k keeps, and what a share of 1 weighs.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.kernels.sampling.candidates import (
    EXACT,
    ROUGH,
    appended,
    borders,
    candidates,
    kth_best,
    lane_bests,
    list_lanes,
    narrowed,
    number_of,
    tiles_of,
    value_of,
)
from megainfer.compute.gpu.launching import launch
from megainfer.compute.tokens import DrawWish
from megainfer.device import Device


@triton.jit
def _shares(x, cut):
    """How likely logits are beside the highest one, in [0, 1]: as bits, which are in the same
    order, and as integers. Both are 0 for what is cut off, and for -inf."""
    highest, temperature, least, floor, one = cut
    scaled = tl.div_rn(x - highest, temperature)
    share = tl.where((scaled >= least) & (x >= floor), tl.exp(scaled), 0.0)  # NaN is cut off
    return share.to(tl.uint32, bitcast=True), (share * one).to(tl.int64)


@triton.jit
def _list_likely(source, cut, edge, TILE: tl.constexpr):
    """List whatever of the row is as likely as the edge; the list's length, 0 if it is too long."""
    row_ptr, list_ptr, size = source[0], source[1], source[3]
    length = tl.full((), 0, tl.int32)
    tl.debug_barrier()
    for start in tl.range(0, size, TILE, num_stages=3):
        places = start + tl.arange(0, TILE)
        x = tl.load(row_ptr + places, mask=places < size, other=float("-inf"))
        share = _shares(x, cut)[0]
        length = appended(list_ptr, length, places, share >= edge, TILE)
    tl.debug_barrier()
    return tl.where(length <= TILE, length, 0)


@triton.jit
def _total(source, cut, edge, TILE: tl.constexpr):
    """What the candidates weigh that are as likely as the edge."""
    total = tl.full((), 0, tl.int64)
    for start in range(0, number_of(source), TILE):
        x = candidates(source, start, TILE)[1]
        share, weight = _shares(x, cut)
        total += tl.sum(tl.where(share >= edge, weight, 0), 0)
    return total


@triton.jit
def _nucleus_edge(source, cut, wanted, STEPS: tl.constexpr, SEARCH: tl.constexpr):
    """The largest share, as bits, such that those that reach it weigh `wanted` together, or a lower
    one, see `kth_best`; the least above 0 where all don't."""
    found = tl.full((), 0, tl.uint32)
    for step in range(STEPS):
        shift = tl.cast(28 - 4 * step, tl.uint32)
        above = tl.full((16,), 0, tl.int64)
        for start in range(0, number_of(source), SEARCH):
            x = candidates(source, start, SEARCH)[1]
            share, weight = _shares(x, cut)
            reach = share[:, None] >= borders(found, shift)[None, :]
            above += tl.sum(tl.where(reach, weight[:, None], 0), 0)
        found = narrowed(found, shift, above, wanted)
    return tl.maximum(found, 1)


@triton.jit
def _drawn(source, cut, edge, uniform, TILE: tl.constexpr):
    """Where the running sum of the candidates first exceeds this share of their total."""
    list_ptr, length = source[1], source[2]
    total = _total(source, cut, edge, TILE)
    target = tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)
    before = tl.full((), 0, tl.int32)  # candidates
    weighed = tl.full((), 0, tl.int64)
    for start in range(0, number_of(source), TILE):
        x = candidates(source, start, TILE)[1]
        share, weight = _shares(x, cut)
        weight = tl.where(share >= edge, weight, 0)
        passed = weighed + tl.cumsum(weight, 0) <= target
        before += tl.sum(passed.to(tl.int32), 0)
        weighed += tl.sum(weight, 0)
    before = tl.minimum(before, number_of(source) - 1)
    listed = tl.load(list_ptr + before, mask=length > 0, other=0)
    return tl.where(length > 0, listed, before)


@triton.jit
def _draw_rows(
    logits_ptr, wishes_ptr, lists_ptr, tokens_ptr, size, one,
    IS_LONG: tl.constexpr, TILE: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr, list_ptr = logits_ptr + row * size, lists_ptr + row * TILE
    temperature = tl.load(wishes_ptr + row * 5).to(tl.float32)
    top_k = tl.load(wishes_ptr + row * 5 + 1).to(tl.int32)
    top_p = tl.load(wishes_ptr + row * 5 + 2)
    least = tl.load(wishes_ptr + row * 5 + 3).to(tl.float32)
    uniform = tl.load(wishes_ptr + row * 5 + 4)

    bests, lanes = lane_bests(row_ptr, size, TILE)
    highest = tl.max(bests, 0)
    length = tl.full((), 0, tl.int32)
    floor = tl.full((), float("-inf"), tl.float32)
    edge = tl.full((), 1, tl.uint32)
    if top_k < size:
        if IS_LONG:
            list_lanes(list_ptr, lanes, TILE)
            source = (row_ptr, list_ptr, TILE, size)
            floor = value_of(kth_best(source, top_k, ROUGH, SEARCH))
            cut = (highest, temperature, least, floor, one)
            length = _list_likely(source, cut, edge, TILE)
        floor = value_of(kth_best((row_ptr, list_ptr, length, size), top_k, EXACT, SEARCH))
    cut = (highest, temperature, least, floor, one)
    if top_p < 1.0:
        total = _total((row_ptr, list_ptr, length, size), cut, edge, TILE)
        wanted = tl.minimum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), total)
        if IS_LONG:  # noqa: SIM102 (it is known when this is compiled, the other isn't)
            if length == 0:
                list_lanes(list_ptr, lanes, TILE)
                source = (row_ptr, list_ptr, TILE, size)
                edge = _nucleus_edge(source, cut, wanted, ROUGH, SEARCH)
                length = _list_likely(source, cut, edge, TILE)
        edge = _nucleus_edge((row_ptr, list_ptr, length, size), cut, wanted, EXACT, SEARCH)
    token = _drawn((row_ptr, list_ptr, length, size), cut, edge, uniform, TILE)
    tl.store(tokens_ptr + row, token.to(tl.int64))


def draw(device: Device, logits: Tensor, wishes: Sequence[DrawWish]) -> Tensor:
    """See `TokenKernels.draw`: float32 [S, V], contiguous -> int64 [S], tokens for any row."""
    assert logits.is_contiguous(), f"rows that lie {logits.stride(0)} apart"
    rows, size = logits.shape
    tile, search = tiles_of(size)
    numbers = [
        (w.temperature, w.top_k, w.top_p, math.log(w.min_p) if w.min_p else -math.inf, w.uniform)
        for w in wishes
    ]
    uploaded = device.upload(torch.tensor(numbers, dtype=torch.float64).reshape(rows, 5))
    lists = device.empty((rows, tile), torch.int32)
    tokens = device.empty((rows,), torch.int64)
    one = 2.0 ** (62 - size.bit_length())  # as fine as size of them can be added in int64
    launch(
        device, _draw_rows, (rows,), logits, uploaded, lists, tokens, size, one,
        IS_LONG=size > tile, TILE=tile, SEARCH=search, num_warps=16, writes=(lists, tokens),
    )  # fmt: skip
    return tokens
