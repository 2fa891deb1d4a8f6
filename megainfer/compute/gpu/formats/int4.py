"""int4 with a float32 scale and a zero point for each output and so many inputs."""

import torch
from torch import Tensor

from megainfer.compute.gpu.formats.blocks import blocks_of, joined, reach
from megainfer.compute.gpu.formats.format import Quantised, WeightFormat
from megainfer.compute.gpu.formats.recovery import recovered_scales

_LARGEST_CODE, _MIDDLE = 15, 8
_LARGEST = 7
"""Less than the middle, of weights that were in no codes: as many above it as below."""
_LARGEST_CODES = (8, 7, *range(16, 8, -1), *range(6, 0, -1))
"""Distances from a zero point, likely ones first; GPTQ's may be 16."""


def _rounded(blocks: Tensor, scales: Tensor) -> Tensor:
    steps = (blocks / scales).round()
    # A zero point is one of the codes, or behind them: no distance from it is further than that.
    spread = steps.amax(-1, keepdim=True) - steps.amin(-1, keepdim=True).clamp(max=0)
    return torch.where(spread <= _LARGEST_CODE, steps * scales, torch.nan)


def int4(name: str, group: int) -> WeightFormat:
    """group: see `WeightFormat`.

    What was stored in such groups, or in larger ones that these divide, is kept bit for bit, unless
    inputs were reordered between groups. Any other weight is off by at most half a scale: 1/14 of
    its group's largest.
    """

    def quantise(weight: Tensor) -> Quantised:
        blocks = blocks_of(weight, 1, group)
        largest = reach(blocks)
        own = recovered_scales(blocks.flatten(0, 1), largest.flatten(), _LARGEST_CODES, _rounded)
        own = own.view(largest.shape)
        tiny = torch.finfo(torch.float32).tiny
        scales = torch.where(own.isnan(), (largest / _LARGEST).clamp(min=tiny), own)
        steps = (blocks / scales[..., None]).round()
        zeros = torch.where(own.isnan(), _MIDDLE, -steps.amin(-1).clamp(max=0))
        codes = (steps + zeros[..., None]).clamp(0, _LARGEST_CODE).to(torch.uint8)
        return Quantised(joined(codes, 1, weight.shape), scales, zeros.to(torch.uint8))

    return WeightFormat(
        name, "int4", torch.uint8, quantise, packed=2, rows=1, group=group, zeros=True
    )
