"""The scales with which a checkpoint stores weights, found again from the weights.

A weight that was read from codes is float32(code * scale). Its block's largest is so of some code,
and with that code the scale is known, but for what float32 rounded away: at most two neighbours of
the quotient. Where one of few such scales gives back every weight of a block, nothing is lost.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NEIGHBOURS = (0, 1, -1, 2, -2)
SAMPLE = 4
"""Weights of a block that are tried first: hardly any scale that isn't right gives them back."""

Rounding = Callable[[Tensor, Tensor], Tensor]
"""Weights [B, n] as codes of scales [B, 1] give them, NaN where none could."""


def recovered_scales(
    blocks: Tensor, largest: Tensor, codes: Sequence[float], rounding: Rounding
) -> Tensor:
    """[B]: of each block [B, n] of float32 a scale by which it is what `rounding` gives back; NaN
    where there is none.

    largest: [B], magnitudes. codes: what the largest weight of a block may be stored as.
    """
    scales = torch.full_like(largest, torch.nan)
    left = largest.nonzero().flatten()
    sample = blocks[:, :: max(1, blocks.shape[1] // SAMPLE)]
    for step in NEIGHBOURS:
        for code in codes:
            tried = _neighbour(largest[left] / code, step)
            likely = _gives_back(sample[left], tried, rounding).nonzero().flatten()
            found = likely[_gives_back(blocks[left[likely]], tried[likely], rounding)]
            scales[left[found]] = tried[found]
            if len(found):
                left = left[scales[left].isnan()]
    return scales


def _gives_back(blocks: Tensor, scales: Tensor, rounding: Rounding) -> Tensor:
    return (rounding(blocks, scales[:, None]) == blocks).all(-1)


def _neighbour(scales: Tensor, step: int) -> Tensor:
    """The float32 that is so many further from zero."""
    return (scales.view(torch.int32) + step).view(torch.float32)
