"""Keys, values and latents as codes of eight bits, after the formulas."""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
LEAST_NORMAL = 2.0**-6
LEAST_SCALED = 1e-30


@dataclass(frozen=True)
class Codes:
    """codes [..., n], each times its row's scale, bfloat16 [...]."""

    codes: Tensor
    scales: Tensor

    @property
    def numbers(self) -> Tensor:
        """float32 [..., n]."""
        return self.codes.to(torch.float32) * self.scales.to(torch.float32)[..., None]


def quantised(x: Tensor, dtype: torch.dtype) -> Codes:
    """x [..., n]: each row by a scale of its own, the smallest in bfloat16 by which its largest is
    at most the largest code. int8: the nearest, ties to even. float8_e4m3fn: the nearest normal
    number, or zero."""
    x = x.to(torch.float32)
    quotient = x.abs().amax(-1) / LARGEST[dtype]
    quotient = quotient.masked_fill(x.abs().amax(-1) < torch.tensor(LEAST_SCALED), 0.0)
    scales = _rounded_up(quotient)
    inverse = 1 / scales.to(torch.float32)[..., None]
    scaled = torch.where(inverse.isinf(), 0.0, x * inverse)
    if dtype == torch.int8:
        return Codes(scaled.round().to(torch.int8), scales)
    small = torch.where(scaled.abs() > LEAST_NORMAL / 2, LEAST_NORMAL, 0.0).copysign(scaled)
    kept = torch.where(scaled.abs() < LEAST_NORMAL, small, scaled)
    return Codes(kept.to(torch.float8_e4m3fn), scales)


def _rounded_up(x: Tensor) -> Tensor:
    """To bfloat16, of numbers that aren't negative."""
    near = x.to(torch.bfloat16)
    above = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(near.to(torch.float32) < x, above, near)
