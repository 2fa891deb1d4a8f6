"""What a router makes of its logits."""

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """ln(1 + e^x) of float32, exact to the last bits wherever x is."""
    # ln(1 + y) of y = e^-|x| is 2 artanh(y / (2 + y)), whose series needs no logarithm: one of a
    # sum near 1 would have lost what is small.
    y = tl.exp(-tl.abs(x))
    z = y / (2 + y)
    square = z * z
    series = 1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (
        1 / 9 + square * (1 / 11 + square * (1 / 13 + square / 15))))))  # fmt: skip
    return tl.where(x > 0, x, 0.0) + 2 * z * series


@triton.jit
def softmax(x, exists):
    """Over all of the tile that exists; 0 elsewhere."""
    x = tl.where(exists, x, float("-inf"))
    powers = tl.exp(x - tl.max(x))
    return powers / tl.sum(powers)


@triton.jit
def scores_of(logits, exists, SCORE: tl.constexpr):
    """What experts are chosen by, of float32 logits; SCORE: a `RouterScore`."""
    if SCORE == "softmax":
        scores = softmax(logits, exists)
    elif SCORE == "sigmoid":
        scores = tl.sigmoid(logits)
    elif SCORE == "sqrt_softplus":
        scores = tl.sqrt(softplus(logits))
    elif SCORE == "constant":
        scores = tl.full(logits.shape, 1.0, tl.float32)
    else:
        scores = logits
    return scores
