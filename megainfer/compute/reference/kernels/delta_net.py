"""The recurrent parts of gated DeltaNet: a convolution over the past, and the gated delta rule."""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

LENGTH_EPS = 1e-6
"""Added to the square of a query's or key's length, as in transformers."""


def causal_convolution(inputs: Tensor, past: Tensor, taps: Tensor) -> Tensor:
    """silu of each channel's weighted sum of its last K inputs: [T, C] -> [T, C], float32.

    past: [K - 1, C], the inputs before these, oldest first; it becomes the last ones of these.
    taps: [C, K], that of the newest input last. A token's result is the same bits however its
    sequence is cut.
    """
    tokens, newest = len(inputs), taps.shape[1] - 1
    window = torch.cat([past, inputs])
    total = window[:tokens] * taps[:, 0]
    for tap in range(1, newest + 1):
        total += window[tap : tap + tokens] * taps[:, tap]
    past.copy_(window[tokens:])
    return silu(total)


def decays(projected: Tensor, time_bias: Tensor, log_decay: Tensor) -> Tensor:
    """What is left of a state after a token: e^(-e^A softplus(a + bias)) for a [T, H]."""
    return torch.exp(-torch.exp(log_decay) * softplus(projected + time_bias))


def unit_length(x: Tensor) -> Tensor:
    """x / sqrt(x . x + eps) over the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, state: Tensor
) -> Tensor:
    """Tokens in order through the gated delta rule (see `DeltaNetSpec`): [T, H, dv], float32.

    q, k: [T, H, dk], of length 1. v: [T, H, dv]. decay, rate: [T, H]. state: [H, dk, dv], which
    takes the tokens in. A token's result is the same bits however its sequence is cut.
    """
    scaled = q * q.shape[-1] ** -0.5
    out = torch.empty_like(v)
    for t in range(len(v)):
        key = k[t, :, :, None]
        state *= decay[t, :, None, None]
        known = (state * key).sum(-2)
        correction = rate[t, :, None] * (v[t] - known)
        state += key * correction[:, None]
        out[t] = (state * scaled[t, :, :, None]).sum(-2)
    return out
