"""Codes of quantised weights as numbers, in a kernel that multiplies by them."""

import triton
import triton.language as tl


@triton.jit
def decoded(codes, KIND: tl.constexpr):
    """A tile of codes, each in a number of its own, as bfloat16 of the same values, which are exact:
    `int8`, `int4` (from 0 on), `e4m3`, `e2m1`. Of `float` the codes are the numbers.

    A float of fewer bits becomes a bfloat16 by shifting its exponent and mantissa there, and so a
    power of two too small by the difference between the exponents' biases: right for subnormal
    codes too, and possible where a GPU has no instruction for it.
    """
    if KIND == "e4m3":
        wide = codes.to(tl.int16)
        bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 4)
        numbers = bits.to(tl.bfloat16, bitcast=True) * 2.0**120
    elif KIND == "e2m1":
        wide = codes.to(tl.int16)
        bits = ((wide & 8) << 12) | ((wide & 7) << 6)
        numbers = bits.to(tl.bfloat16, bitcast=True) * 2.0**126
    elif KIND == "float":
        numbers = codes
    else:
        numbers = codes.to(tl.bfloat16)
    return numbers


@triton.jit
def powers_of_two(exponents):
    """float8_e8m0fnu, in int32, as bfloat16: by its exponent, 2**-127 being a subnormal one."""
    bits = tl.maximum(exponents << 7, 1 << 6).to(tl.int16)
    return bits.to(tl.bfloat16, bitcast=True)
