"""Rotary position embedding (Su et al., RoFormer), in the half-split form of transformers."""

import torch
from torch import Tensor


def rotary_table(theta: float, head_dim: int, max_position: int, dtype: torch.dtype) -> Tensor:
    """[max_position, 2, head_dim]: for each position the factors that `rotate` multiplies with.

    Row 0 holds cosines; row 1 sines, the first half of them negated. Angles are in float32:
    position * theta^(-2i/d), the same for dimension i and i + d/2.
    """
    even = torch.arange(0, head_dim, 2, dtype=torch.float32)
    frequencies = 1.0 / (theta ** (even / head_dim))
    angles = torch.arange(max_position, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
    return table.to(dtype)


def rotate(heads: Tensor, factors: Tensor) -> Tensor:
    """Rotate heads [T, H, d] by the table's rows of their positions, [T, 2, d]; a new tensor."""
    cos, signed_sin = factors[:, 0, None], factors[:, 1, None]
    swapped = heads.roll(heads.shape[-1] // 2, -1)  # halves change places
    return heads * cos + swapped * signed_sin
