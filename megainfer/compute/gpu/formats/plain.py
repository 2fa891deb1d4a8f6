"""Weights in floating point."""

import torch
from torch import Tensor

from megainfer.compute.gpu.formats.format import Quantised, WeightFormat


def plain(dtype: torch.dtype) -> WeightFormat:
    """float32 or bfloat16, rounded to the nearest."""

    def quantise(weight: Tensor) -> Quantised:
        return Quantised(weight.to(dtype))

    return WeightFormat(str(dtype).removeprefix("torch."), "float", dtype, quantise)
