"""Normalisation."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, a new tensor in x's dtype.

    x: [..., d]. weight: broadcastable to x. As in transformers, the normalisation is in float32
    and its result is rounded to x's dtype before it is scaled.
    """
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight
