"""Weights of multi-head latent attention in the order in which they are computed with."""

import torch
from torch import Tensor

from megainfer.models.spec import MlaSpec


def rotated_apart(spec: MlaSpec, rows: Tensor, period: int) -> Tensor:
    """rows, their last `rope_dim` of every `period` in the order that half-split rotation wants.

    DeepSeek rotates channels 2i and 2i + 1 together. Moving the even ones before the odd ones, of
    queries and of the key alike, changes no score, and is done once to what projects to them.
    rows: [n * period, ...], of a projection or its bias.
    """
    if not spec.interleaved:
        return rows
    return halves_apart(rows, period, period - spec.rope_dim, spec.rope_dim)


def halves_apart(rows: Tensor, period: int, first: int, count: int) -> Tensor:
    """rows, of every `period` the `count` from `first` on with even ones before odd ones."""
    heads = rows.view(-1, period, *rows.shape[1:])
    before, pairs, after = heads.tensor_split((first, first + count), 1)
    return torch.cat((before, pairs[:, 0::2], pairs[:, 1::2], after), 1).flatten(0, 1)


def up_by_head(spec: MlaSpec, kv_up: Tensor) -> tuple[Tensor, Tensor]:
    """Of the projection from latents, [H * (n + v), R]: to keys [H, n, R], to values [H, v, R]."""
    heads = kv_up.view(spec.num_heads, -1, kv_up.shape[1])
    keys, values = heads.split_with_sizes([spec.nope_dim, spec.v_dim], 1)
    return keys, values
