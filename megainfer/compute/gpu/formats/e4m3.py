"""FP8 (float8_e4m3fn) with a float32 scale a block or an output."""

from functools import partial

import torch
from torch import Tensor

from megainfer.compute.gpu.formats.blocks import blocks_of, joined, reach
from megainfer.compute.gpu.formats.format import Quantised, WeightFormat
from megainfer.compute.gpu.formats.recovery import recovered_scales

LARGEST = 448.0
BLOCK = 128
"""Outputs and inputs of DeepSeek's blocks."""

# A block whose largest code is smaller has another scale too, a power of two below, by which all
# its codes are exact and the largest one of these; 480 is NaN.
_LARGEST_CODES = (448, 416, 384, 352, 320, 288, 256, 240)


def _codes(blocks: Tensor, scales: Tensor) -> Tensor:
    return (blocks / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def _rounded(blocks: Tensor, scales: Tensor) -> Tensor:
    return _codes(blocks, scales).to(torch.float32).mul_(scales)


def _quantise(rows: int, group: int, weight: Tensor) -> Quantised:
    blocks = blocks_of(weight, rows, group or weight.shape[1])
    largest = reach(blocks)
    scales = recovered_scales(blocks.flatten(0, 1), largest.flatten(), _LARGEST_CODES, _rounded)
    chosen = (largest / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    scales = torch.where(scales.isnan(), chosen.flatten(), scales).view(largest.shape)
    codes = _codes(blocks, scales[..., None]).view(torch.uint8)
    return Quantised(joined(codes, rows, weight.shape), scales)


def e4m3(name: str, rows: int, group: int) -> WeightFormat:
    """rows, group: see `WeightFormat`.

    What was stored by scales of such blocks, or of larger ones that these divide, is kept bit for
    bit. Any other weight is off by at most 1/16 of itself, or 2**-10 scales where that is more; a
    scale is 1/448 of a block's largest weight.
    """
    return WeightFormat(
        name, "e4m3", torch.uint8, partial(_quantise, rows, group), rows=rows, group=group
    )
