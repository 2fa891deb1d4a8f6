"""The gate: which experts each token chooses, and what is sent where."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.m2n.mailbox import Part
from megainfer.models.spec import RouterSpec


class Homes(NamedTuple):
    """For each global expert id: the expert node and the local id that its tokens are sent to."""

    node: Tensor  # int64 [E]
    local_id: Tensor  # int32 [E]
    num_nodes: int


def expert_homes(homes: Sequence[tuple[int, int]], num_nodes: int) -> Homes:
    """Homes from (node, local id) of each expert, in order."""
    return Homes(
        node=torch.tensor([node for node, _ in homes]),
        local_id=torch.tensor([local_id for _, local_id in homes], dtype=torch.int32),
        num_nodes=num_nodes,
    )


def route(logits: Tensor, router: RouterSpec) -> tuple[Tensor, Tensor]:
    """Which experts each token chooses: logits [T, E] -> (weights, ids), both [T, K], best first.

    weights: float32, normalised and rounded as the spec says. ids: int64, global.
    """
    scores = torch.softmax(logits, dim=-1, dtype=torch.float32)
    weights, ids = scores.topk(router.top_k, dim=-1)
    if router.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    if router.rounded:
        weights = weights.to(logits.dtype).to(torch.float32)
    return weights, ids


def scatter_plan(weights: Tensor, ids: Tensor, homes: Homes) -> tuple[Part, ...]:
    """What each expert node is sent, one Part a node: only rows with an expert there.

    weights: float32 [T, K]. ids: int64 [T, K], global.
    """
    local_ids = homes.local_id[ids]
    if homes.num_nodes == 1:
        return (Part(torch.arange(len(ids), device=ids.device), local_ids, weights),)
    node = homes.node[ids]
    return tuple(_part(node == n, local_ids, weights) for n in range(homes.num_nodes))


def _part(here: Tensor, local_ids: Tensor, weights: Tensor) -> Part:
    """The part of one node; here: bool [T, K], true where a choice lives there."""
    rows = here.any(-1).nonzero().flatten()
    chosen = here[rows]
    return Part(
        rows=rows,
        local_ids=local_ids[rows].masked_fill(~chosen, -1),
        weights=weights[rows].masked_fill(~chosen, 0.0),
    )
