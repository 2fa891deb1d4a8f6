"""int8 with a float32 scale for each output and 128 inputs, as the CPU kernels keep it."""

import torch
from torch import Tensor

from megainfer.compute.gpu.formats.blocks import blocks_of, joined, reach
from megainfer.compute.gpu.formats.format import Quantised, WeightFormat

GROUP = 128
_LARGEST = 127


def _quantise(weight: Tensor) -> Quantised:
    blocks = blocks_of(weight, 1, GROUP)
    scales = (reach(blocks) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (blocks / scales[..., None]).round_().clamp_(-_LARGEST, _LARGEST)
    return Quantised(joined(codes.to(torch.int8), 1, weight.shape), scales)


INT8 = WeightFormat("int8", "int8", torch.int8, _quantise, rows=1, group=GROUP)
"""A weight is at most half a scale off: 1/254 of its group's largest."""
