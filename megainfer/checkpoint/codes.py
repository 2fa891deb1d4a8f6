"""What codes of four and eight bits mean, by arithmetic on many at a time.

A float of fewer bits becomes a float16 by shifting its exponent and mantissa there, and so a power
of two too small by the difference between the exponents' biases: exact, subnormal codes included.
"""

from functools import cache

import torch
from torch import Tensor

FLOAT16_BIAS, E4M3_BIAS, E2M1_BIAS = 15, 7, 1
LARGEST_E4M3 = 448.0


def nibbles(stored: Tensor) -> Tensor:
    """uint8 codes, two a byte along the last axis, the lower half first; words are little-endian.

    >>> nibbles(torch.tensor([0x21, 0x43], dtype=torch.uint8))
    tensor([1, 2, 3, 4], dtype=torch.uint8)
    """
    pairs = stored.contiguous().view(torch.uint8).to(torch.int16)
    pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F)
    return pairs.view(torch.uint8)


def e4m3(codes: Tensor) -> Tensor:
    """float8_e4m3fn to float32, some ten times as fast as torch 2.13 converts it."""
    bits = codes.view(torch.int8).to(torch.int16)  # the sign is copied into bit 15
    bits.bitwise_left_shift_(7).bitwise_and_(~(1 << 14))
    values = bits.view(torch.float16).to(torch.float32)
    values.mul_(2.0 ** (FLOAT16_BIAS - E4M3_BIAS))
    if values.numel() and _reach(values) > LARGEST_E4M3:  # what would be 480 is NaN
        values[values.abs() > LARGEST_E4M3] = torch.nan
    return values


def _reach(values: Tensor) -> float:
    least, largest = values.aminmax()
    return max(-float(least), float(largest))


def e2m1(codes: Tensor) -> Tensor:
    """float4_e2m1fn, one a byte, to float32."""
    wide = codes.to(torch.int16)
    bits = ((wide & 8) << 12).bitwise_or_((wide & 7) << 9)
    values = bits.view(torch.float16).to(torch.float32)
    return values.mul_(2.0 ** (FLOAT16_BIAS - E2M1_BIAS))


def e2m1_pairs(stored: Tensor) -> Tensor:
    """float4_e2m1fn, two a byte as in `nibbles`, to float32.

    >>> e2m1_pairs(torch.tensor([0x21, 0xF7], dtype=torch.uint8))
    tensor([ 0.5000,  1.0000,  6.0000, -6.0000])
    """
    found = _two_floats().index_select(0, stored.flatten().to(torch.int32))
    return found.view(torch.float32).view(*stored.shape[:-1], -1)


@cache
def _two_floats() -> Tensor:
    """float64 [256], which has for each byte the two float32 that it means."""
    return e2m1(nibbles(torch.arange(256).to(torch.uint8))).view(torch.float64)


def octets(words: Tensor) -> Tensor:
    """uint8 codes of the words' bytes, the lowest first."""
    return words.contiguous().view(torch.uint8)


def as_scales(stored: Tensor) -> Tensor:
    """float32; bytes are exponents, float8_e8m0fnu by another name."""
    if stored.dtype is torch.uint8:
        stored = stored.view(torch.float8_e8m0fnu)
    return stored.to(torch.float32)


def unpack_awq(words: Tensor) -> Tensor:
    """float32. A word has outputs 0, 2, 4 and 6 of eight, then 1, 3, 5 and 7: two swaps of bytes
    bring them in order, first of pairs (0 2 4 6 1 3 5 7 to 0 2 1 3 4 6 5 7), then of single
    ones."""
    eight = _swapped(_swapped(nibbles(words).view(torch.int64), 16, 0xFFFF0000), 8, 0xFF000000FF00)
    return eight.view(torch.uint8).to(torch.float32)


def _swapped(x: Tensor, bits: int, mask: int) -> Tensor:
    """With these bits of each number in place of those that are so many further up."""
    different = (x ^ (x >> bits)).bitwise_and_(mask)
    return x ^ different ^ (different << bits)
