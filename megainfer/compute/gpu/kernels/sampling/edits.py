"""Changing logits as requests wish, in one launch; see `compute.edits`.

What is to be done is one buffer of int32 words, so that it is one upload, floats as their bits. It
begins with a header a row, whose fields say where in the buffer the rest lies; 0, where the first
header is, stands for no mask. A program does all of it for some of a row's tokens, so that
what comes later finds what came before.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.bitmask import words_for
from megainfer.compute.edits import RowEdits
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of
from megainfer.device import Device

HEADER = 9
"""Words: the row; where its mask is; where the tokens are to which is added, their number; where
those are that it holds, their number; repetition, frequency, presence. What is added to tokens,
and the counts of those that are held, are behind the tokens."""
TILE = 2048
Words = npt.NDArray[np.int32]


@triton.jit
def _edit_rows(logits_ptr, words_ptr, size, HEADER: tl.constexpr, TILE: tl.constexpr):
    header = words_ptr + tl.program_id(0) * HEADER
    row_ptr = logits_ptr + tl.load(header).to(tl.int64) * size
    begin = tl.program_id(1) * TILE
    end = tl.minimum(begin + TILE, size)
    lanes = tl.arange(0, TILE)

    mask_at = tl.load(header + 1)
    if mask_at != 0:
        tokens = begin + lanes
        words = tl.load(words_ptr + mask_at + tokens // 32, mask=tokens < end, other=-1)
        is_allowed = (words >> (tokens % 32)) & 1 != 0
        tl.store(row_ptr + tokens, float("-inf"), mask=(tokens < end) & ~is_allowed)
        tl.debug_barrier()

    tokens_at = words_ptr + tl.load(header + 2)
    number = tl.load(header + 3)
    for start in range(0, number, TILE):
        at = start + lanes
        tokens = tl.load(tokens_at + at, mask=at < number, other=-1)
        mine = (tokens >= begin) & (tokens < end)
        added = tl.load(tokens_at + number + at, mask=mine).to(tl.float32, bitcast=True)
        x = tl.load(row_ptr + tokens, mask=mine)
        tl.store(row_ptr + tokens, x + added, mask=mine)
    tl.debug_barrier()

    tokens_at = words_ptr + tl.load(header + 4)
    number = tl.load(header + 5)
    repetition = tl.load(header + 6).to(tl.float32, bitcast=True)
    frequency = tl.load(header + 7).to(tl.float32, bitcast=True)
    presence = tl.load(header + 8).to(tl.float32, bitcast=True)
    for start in range(0, number, TILE):
        at = start + lanes
        tokens = tl.load(tokens_at + at, mask=at < number, other=-1)
        mine = (tokens >= begin) & (tokens < end)
        count = tl.load(tokens_at + number + at, mask=mine).to(tl.float32, bitcast=True)
        x = tl.load(row_ptr + tokens, mask=mine)
        x = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
        x = x - frequency * count - tl.where(count > 0, presence, 0.0)
        tl.store(row_ptr + tokens, x, mask=mine)


def edit(device: Device, logits: Tensor, edits: Sequence[RowEdits]) -> None:
    """See `TokenKernels.edit`: in place, float32 [S, V], contiguous."""
    assert logits.is_contiguous(), f"rows that lie {logits.stride(0)} apart"
    size = logits.shape[-1]
    if edits:
        words = device.upload(torch.from_numpy(packed(edits, size)))
        launch(
            device, _edit_rows, (len(edits), parts_of(size, TILE)), logits, words, size,
            HEADER=HEADER, TILE=TILE, writes=(logits,),
            enable_fp_fusion=False,  # each operation is rounded, as in the reference
        )  # fmt: skip


def packed(edits: Sequence[RowEdits], vocab_size: int) -> Words:
    """The buffer, a copy of all that there is of these edits."""
    headers = np.zeros((len(edits), HEADER), dtype=np.int32)
    parts: list[Words] = [headers.reshape(-1)]
    length = headers.size

    def place(*given: Words) -> int:
        """Where in the buffer these come, one after the other."""
        nonlocal length
        parts.extend(given)
        begin, length = length, length + sum(map(len, given))
        return begin

    for header, each in zip(headers, edits, strict=True):
        header[0] = each.row
        if each.allowed is not None:
            mask = each.allowed
            assert len(mask) == words_for(vocab_size), f"{len(mask)} words for {vocab_size} tokens"
            header[1] = place(mask)
        header[2:4] = place(_ids(each.added), _floats(each.added.values())), len(each.added)
        held = np.asarray(each.held).astype(np.int32)
        header[4:6] = place(held, _floats(each.generated)), len(held)
        header[6:] = _floats((each.repetition, each.frequency, each.presence))
    return np.concatenate(parts)


def _ids(tokens: Iterable[int]) -> Words:
    return np.array(array("i", tokens), dtype=np.int32)


def _floats(numbers: Iterable[float]) -> Words:
    """Their bits."""
    return np.array(array("f", numbers), dtype=np.float32).view(np.int32)
