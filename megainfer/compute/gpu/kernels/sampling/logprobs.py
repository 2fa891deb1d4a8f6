"""Log-probabilities of rows of logits, each row by a program of its own."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.kernels.sampling.candidates import (
    ROUGH,
    appended,
    best_first,
    candidates,
    kth_best,
    lane_bests,
    list_lanes,
    number_of,
    ordered,
    place_of,
    tiles_of,
    value_of,
)
from megainfer.compute.gpu.launching import launch
from megainfer.compute.tokens import Scores
from megainfer.device import Device

MOST = 64
"""The best so many of a row are found one by one; for more, all of the row is sorted."""


@triton.jit
def _list_best(source, floor, TILE: tl.constexpr):
    """List whatever of the row isn't below the floor; the list's length, 0 if it is too long."""
    row_ptr, list_ptr, size = source[0], source[1], source[3]
    length = tl.full((), 0, tl.int32)
    tl.debug_barrier()
    for start in tl.range(0, size, TILE, num_stages=2):
        places = start + tl.arange(0, TILE)
        x = tl.load(row_ptr + places, mask=places < size, other=float("-inf"))
        length = appended(list_ptr, length, places, (places < size) & (x >= floor), TILE)
    tl.debug_barrier()
    return tl.where(length <= TILE, length, 0)


@triton.jit
def _store_best(source, ids_ptr, number, SEARCH: tl.constexpr):
    """The best candidates' places, the best first, and the first of those that tie."""
    last = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
    for i in range(number):
        best = tl.full((), -0x8000000000000000, tl.int64)
        for start in range(0, number_of(source), SEARCH):
            places, x = candidates(source, start, SEARCH)
            first = best_first(ordered(x), places)
            exists = start + tl.arange(0, SEARCH) < number_of(source)
            first = tl.where(exists & (first < last), first, -0x8000000000000000)
            best = tl.maximum(best, tl.max(first, 0))
        tl.store(ids_ptr + i, place_of(best))
        last = best
    tl.debug_barrier()


@triton.jit
def _score_rows(
    logits_ptr, tokens_ptr, rows_ptr, starts_ptr, lists_ptr, ids_ptr, values_ptr, own_ptr,
    ranks_ptr, size,
    IS_LONG: tl.constexpr, MOST: tl.constexpr, TILE: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + program)
    row_ptr, list_ptr = logits_ptr + row * size, lists_ptr + program * TILE
    begin = tl.load(starts_ptr + program)
    number = (tl.load(starts_ptr + program + 1) - begin).to(tl.int32)
    token = tl.minimum(tl.maximum(tl.load(tokens_ptr + row), 0), size - 1)
    own = tl.load(row_ptr + token)

    bests, lanes = lane_bests(row_ptr, size, TILE)
    highest = tl.max(bests, 0)
    if IS_LONG:
        list_lanes(list_ptr, lanes, TILE)
    masses = tl.full((TILE,), 0, tl.float32)
    larger = tl.full((TILE,), 0, tl.int32)
    for start in tl.range(0, size, TILE, num_stages=2):
        places = start + tl.arange(0, TILE)
        x = tl.load(row_ptr + places, mask=places < size, other=float("-inf"))
        masses += tl.exp(x - highest)
        larger += (x > own).to(tl.int32)
    log_mass = tl.log(tl.sum(masses, 0))
    tl.store(own_ptr + program, own - highest - log_mass)
    tl.store(ranks_ptr + program, (tl.sum(larger, 0) + 1).to(tl.int64))

    if number <= MOST:
        length = tl.full((), 0, tl.int32)
        if IS_LONG:
            source = (row_ptr, list_ptr, TILE, size)
            floor = value_of(kth_best(source, number, ROUGH, SEARCH))
            length = _list_best(source, floor, TILE)
        _store_best((row_ptr, list_ptr, length, size), ids_ptr + begin, number, SEARCH)
    for start in range(0, number, TILE):
        at = start + tl.arange(0, TILE)
        places = tl.load(ids_ptr + begin + at, mask=at < number, other=0)
        x = tl.load(row_ptr + places, mask=at < number)
        tl.store(values_ptr + begin + at, x - highest - log_mass, mask=at < number)


def scores(
    device: Device, logits: Tensor, tokens: Tensor, rows: Sequence[int], wanted: Sequence[int]
) -> Scores:
    """See `TokenKernels.scores`; of tokens that tie the first are among the best."""
    assert logits.is_contiguous(), f"rows that lie {logits.stride(0)} apart"
    size = logits.shape[-1]
    tile, search = tiles_of(size)
    starts = [0, *accumulate(wanted)]
    ids = device.empty((starts[-1],), torch.int64)
    for row, (begin, end) in zip(rows, pairwise(starts), strict=True):
        if end - begin > MOST:
            best = logits[row].sort(descending=True, stable=True).indices
            ids[begin:end].copy_(best[: end - begin])
    values, own = (device.empty((n,), torch.float32) for n in (starts[-1], len(rows)))
    ranks = device.empty((len(rows),), torch.int64)
    lists = device.empty((len(rows), tile), torch.int32)
    launch(
        device, _score_rows, (len(rows),),
        logits, tokens, device.upload(torch.tensor(rows)), device.upload(torch.tensor(starts)),
        lists, ids, values, own, ranks, size,
        IS_LONG=size > tile, MOST=MOST, TILE=tile, SEARCH=search, num_warps=16,
        writes=(lists, ids, values, own, ranks),
    )  # fmt: skip
    return Scores(ids, values, own, ranks)
