"""int8 with a float32 scale for each output and so many inputs, as the CPU kernels keep it."""

import torch
from torch import Tensor

from megainfer.compute.gpu.formats.blocks import blocks_of, joined, reach
from megainfer.compute.gpu.formats.format import Quantised, WeightFormat
from megainfer.compute.gpu.formats.recovery import recovered_scales

_LARGEST = 127
_LARGEST_CODES = (_LARGEST, 128, *range(_LARGEST - 1, 0, -1))
_LEAST = -128


def _rounded(blocks: Tensor, scales: Tensor) -> Tensor:
    steps = (blocks / scales).round()
    return torch.where((steps >= _LEAST) & (steps <= _LARGEST), steps * scales, torch.nan)


def int8(name: str, group: int, stored: bool = False) -> WeightFormat:
    """group: see `WeightFormat`. stored: weights that were stored in such groups are kept bit for
    bit. Any other weight is at most half a scale off: 1/254 of its group's largest."""

    def quantise(weight: Tensor) -> Quantised:
        blocks = blocks_of(weight, 1, group)
        largest = reach(blocks)
        scales = (largest / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        if stored:
            flat = blocks.flatten(0, 1), largest.flatten()
            own = recovered_scales(*flat, _LARGEST_CODES, _rounded).view(largest.shape)
            scales = torch.where(own.isnan(), scales, own)
        codes = (blocks / scales[..., None]).round_().clamp_(_LEAST, _LARGEST)
        return Quantised(joined(codes.to(torch.int8), 1, weight.shape), scales)

    return WeightFormat(name, "int8", torch.int8, quantise, rows=1, group=group)
