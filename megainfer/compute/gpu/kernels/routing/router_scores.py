"""What a router makes of its logits."""

import triton
import triton.language as tl

from megainfer.compute.gpu.kernels.activations import softplus


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
