"""Products with weights in any of `formats`, decoded on their way from memory."""

import triton
import triton.language as tl


@triton.jit
def _decoded(codes, KIND: tl.constexpr):
    """A tile of codes, each in a number of its own, as bfloat16 of the same values, all of which it
    has: `int8`, `int4` (from 0 on), `e4m3`, `e2m1`. Of `float` the codes are the numbers.

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
def _powers_of_two(exponents):
    """float8_e8m0fnu, in int32, as bfloat16: by its exponent, 2**-127 being a subnormal one."""
    bits = tl.maximum(exponents << 7, 1 << 6).to(tl.int16)
    return bits.to(tl.bfloat16, bitcast=True)


@triton.jit
def _scaled(
    numbers, scales_ptr, zeros_ptr, first, columns, scale_columns,
    KIND: tl.constexpr, GROUP: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Weights [INPUTS, OUTPUTS] of several groups of inputs, of which `first` is the first, from
    their codes' numbers."""
    GROUPS: tl.constexpr = INPUTS // GROUP
    groups = tl.arange(0, GROUPS)
    parts = tl.reshape(numbers, (GROUPS, GROUP, OUTPUTS))
    if KIND == "e2m1":  # four exponents are a word
        words = tl.load(scales_ptr + first // (4 * GROUP) * scale_columns + columns)
        shifts = 8 * (first % (4 * GROUP) // GROUP + groups)
        scales = _powers_of_two((words[None, :] >> shifts[:, None]) & 0xFF)
    else:
        at = (first // GROUP + groups)[:, None] * scale_columns + columns[None, :]
        scales = tl.load(scales_ptr + at)
        parts -= tl.load(zeros_ptr + at).to(tl.bfloat16)[:, None, :]
    return tl.reshape(parts * scales[:, None, :], (INPUTS, OUTPUTS))


@triton.jit
def add_product(
    sums, x, x_above, codes_ptr, scales_ptr, zeros_ptr, step, columns, stride, scale_columns,
    KIND: tl.constexpr, PACKED: tl.constexpr, ZEROS: tl.constexpr, SCALE_ROWS: tl.constexpr,
    GROUP: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """sums [ROWS, OUTPUTS] and the product of one step's inputs, x [ROWS, INPUTS] and x_above of as
    many more where codes are packed, with the weights of these columns of the transposed matrix.

    Where all inputs of the step share a scale, it multiplies their sum.
    """
    inputs = step * INPUTS + tl.arange(0, INPUTS)
    codes = tl.load(codes_ptr + columns[None, :] * stride + inputs[:, None])
    ON_SUMS: tl.constexpr = KIND != "float" and GROUP % (PACKED * INPUTS) == 0
    part = tl.zeros_like(sums) if ON_SUMS else sums
    group = step * (PACKED * INPUTS) // GROUP if ON_SUMS and GROUP != 0 else 0
    at = group * scale_columns + columns // SCALE_ROWS
    for half in tl.static_range(PACKED):
        own = (codes >> (4 * half)) & 15 if PACKED == 2 else codes
        weights = _decoded(own, KIND)
        if ON_SUMS:
            if ZEROS:
                weights -= tl.load(zeros_ptr + at).to(tl.bfloat16)[None, :]
        elif KIND != "float":
            weights = _scaled(
                weights, scales_ptr, zeros_ptr, (step * PACKED + half) * INPUTS, columns,
                scale_columns, KIND, GROUP, INPUTS, OUTPUTS,
            )  # fmt: skip
        rows = x if half == 0 else x_above
        part = tl.dot(rows, weights.to(x.dtype), part, input_precision="ieee")
    if ON_SUMS:
        part = sums + part * tl.load(scales_ptr + at)[None, :]
    return part
