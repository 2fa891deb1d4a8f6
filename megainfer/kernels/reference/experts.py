"""SwiGLU feed-forward networks: one for all tokens, or many with their tokens grouped."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


class Groups(NamedTuple):
    """A node's choices sorted by expert.

    order: int64 [C], indices into the flattened ids, expert by expert, in row order within one.
    counts: for each local expert, how many choices it got (C in all).
    """

    order: Tensor
    counts: list[int]


def feed_forward(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)): x [T, D] -> [T, D].

    gate_up: [2F, D], gate first. down: [D, F].
    """
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(silu(gate) * up, down)


def group_by_expert(local_ids: Tensor, num_experts: int) -> Groups:
    """Sort the choices local_ids, int32 [R, K], by expert; -1 (not here) is left out."""
    flat = local_ids.flatten()
    absent, *counts = torch.bincount(flat + 1, minlength=num_experts + 1).tolist()
    return Groups(flat.argsort(stable=True)[absent:], counts)


def grouped_feed_forward(
    x: Tensor, weights: Tensor, groups: Groups, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Each row's chosen experts, weighted and summed: x [R, D] -> float32 [R, D].

    weights: float32 [R, K]; those of choices that are not in `groups` are not used.
    gate_up: [E, 2F, D]. down: [E, D, F]. Rows without a choice here give zeros.
    """
    inputs = x[groups.order // weights.shape[1]].split_with_sizes(groups.counts)
    results = [
        feed_forward(rows, gate_up[expert], down[expert])
        for expert, rows in enumerate(inputs)
        if len(rows)
    ]
    outputs = torch.zeros(*weights.shape, x.shape[1], dtype=torch.float32, device=x.device)
    if results:
        outputs.flatten(0, 1)[groups.order] = torch.cat(results).to(torch.float32)
    return (outputs * weights[..., None]).sum(1)
