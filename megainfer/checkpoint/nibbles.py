"""Codes of four bits, two a byte, the first in the lower half."""

from functools import cache

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the codes of float4_e2m1fn mean: sign, two bits of exponent, one of mantissa."""
UNSIGNED = tuple(float(code) for code in range(16))
CENTRED = tuple(float(code - 8) for code in range(16))
"""Of integers from -8 on, stored with 8 added."""


def look_up(packed: Tensor, meanings: tuple[float, ...]) -> Tensor:
    """packed [..., n], of bytes or little-endian words: their codes' meanings, float32, along the
    last axis.

    >>> look_up(torch.tensor([0x21], dtype=torch.uint8), UNSIGNED)
    tensor([1., 2.])
    """
    octets = packed.contiguous().view(torch.uint8)
    pairs = _pairs(meanings).index_select(0, octets.flatten().to(torch.int32))
    return pairs.view(*octets.shape[:-1], -1)


@cache
def _pairs(meanings: tuple[float, ...]) -> Tensor:
    """[256, 2]: for each byte."""
    table = torch.tensor(meanings)
    octets = torch.arange(256)
    return torch.stack([table[octets % 16], table[octets // 16]], 1)
