"""Codes of quantised weights as numbers, in a kernel that multiplies by them."""

import triton
import triton.language as tl


@triton.jit
def decoded(codes, KIND: tl.constexpr):
    """A tile of codes, each in a number of its own, as float32 of the same values: `float`, `int8`,
    `int4` (from 0 on), `e4m3`, `e2m1`.

    A float of fewer bits becomes a float16 by shifting its exponent and mantissa there, and so a
    power of two too small by the difference between the exponents' biases: exact, subnormal codes
    included, and possible where a GPU has no instruction for it.
    """
    if KIND == "e4m3":
        wide = codes.to(tl.int16)
        bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        numbers = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    elif KIND == "e2m1":
        wide = codes.to(tl.int16)
        bits = ((wide & 8) << 12) | ((wide & 7) << 9)
        numbers = bits.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0
    else:
        numbers = codes.to(tl.float32)
    return numbers


@triton.jit
def powers_of_two(exponents):
    """float8_e8m0fnu, in int32: a float32 by its exponent, 2**-127 being a subnormal one."""
    return tl.maximum(exponents << 23, 1 << 22).to(tl.float32, bitcast=True)
