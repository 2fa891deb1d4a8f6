"""MXFP4: float4_e2m1fn, 32 of which share a power of two (OCP Microscaling Formats)."""

from itertools import pairwise

import torch
from torch import Tensor

from megainfer.compute.gpu.formats.blocks import blocks_of, joined, reach
from megainfer.compute.gpu.formats.format import Quantised, WeightFormat
from megainfer.models.quantization import BLOCK_OF_MXFP4

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by code
_BETWEEN = tuple((a + b) / 2 for a, b in pairwise(_VALUES))
_SIGN, _BIAS, _NAN = 8, 127, 128


def _exponents(largest: Tensor) -> Tensor:
    """The smallest powers of two by which nothing is larger than 6: largest <= 6 * 2**e.

    A group that was read from MXFP4 with another exponent than this has no code that needs it: by
    a smaller one its codes are larger, and still exact.
    """
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2**exponent, from 0.5 on
    exponents = exponent - 3 + (mantissa > 6 / 8)
    exponents = torch.where(largest > 0, exponents, 0).clamp(-_BIAS, _BIAS)
    return torch.where(largest.isfinite(), exponents, _NAN)


def _quantise(weight: Tensor) -> Quantised:
    blocks = blocks_of(weight, 1, BLOCK_OF_MXFP4)
    exponents = _exponents(reach(blocks))
    magnitudes = torch.ldexp(blocks.abs(), -exponents[..., None])
    codes = torch.bucketize(magnitudes.contiguous(), torch.tensor(_BETWEEN), out_int32=True)
    codes = torch.where(blocks.signbit(), codes + _SIGN, codes).to(torch.uint8)
    return Quantised(joined(codes, 1, weight.shape), (exponents + _BIAS).to(torch.uint8))


MXFP4 = WeightFormat(
    "mxfp4", "e2m1", torch.uint8, _quantise, packed=2, rows=1, group=BLOCK_OF_MXFP4, exponents=True
)
"""What was stored as MXFP4 is kept bit for bit. Any other weight is off by at most a quarter of
itself or of its group's power of two, whichever is more."""
