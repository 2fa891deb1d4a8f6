"""The gate: which experts each token chooses, and what is sent where."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from megainfer.device import Device
from megainfer.m2n.mailbox import Part
from megainfer.models.spec import ExpertGroups, GroupScore, RouterScore, RouterSpec
from megainfer.topology import Placement


class Homes(NamedTuple):
    """Of one layer, for each global expert id and each way: the expert node and local id that
    tokens go to. W is 1 where no expert's tokens are shared out, else WAYS."""

    node: Tensor  # int64 [E, W]
    local_id: Tensor  # int32 [E, W]
    num_nodes: int
    nodes: frozenset[int]  # those that `node` has; the others are sent nothing

    @property
    def num_ways(self) -> int:
        """W."""
        return self.node.shape[1]

    def on(self, device: Device) -> "Homes":
        """The same, for tokens on this device."""
        node, local_id = device.upload(self.node), device.upload(self.local_id)
        return self._replace(node=node, local_id=local_id)


def expert_homes(placement: Placement, layer: int) -> Homes:
    """Of a layer's experts."""
    homes = placement.homes(layer)
    return Homes(
        node=torch.tensor([[node for node, _ in own] for own in homes]),
        local_id=torch.tensor([[local_id for _, local_id in own] for own in homes]).int(),
        num_nodes=placement.num_nodes,
        nodes=frozenset(node for own in homes for node, _ in own),
    )


class Routing(NamedTuple):
    """What a router has beside its logits.

    selection_bias: float32 [E], of a spec with `selection_bias`. looked_up: int64 [T, K], the
    tokens' experts from the table of a spec that is `hashed`.
    """

    selection_bias: Tensor | None = None
    looked_up: Tensor | None = None


LOGITS_ALONE = Routing()


def route(
    logits: Tensor, router: RouterSpec, routing: Routing = LOGITS_ALONE
) -> tuple[Tensor, Tensor]:
    """Which experts each token chooses: logits [T, E] -> (weights, ids), both [T, K], best first.

    logits: their bias included; a router of constant score looks at their shape only. weights:
    float32, normalised, rounded to the logits' dtype and scaled as the spec says. ids: int64,
    global.
    """
    weights, ids = _chosen(logits.to(torch.float32), router, routing)
    if router.normalise:
        total = weights.sum(-1, keepdim=True) + router.epsilon
        weights = weights / total.clamp(min=router.least_sum)
    if router.rounded:
        weights = weights.to(logits.dtype).to(torch.float32)
    return weights * router.scale, ids


def _chosen(logits: Tensor, router: RouterSpec, routing: Routing) -> tuple[Tensor, Tensor]:
    """Weights and ids, before weights are normalised."""
    if router.score is RouterScore.SPARSEMIXER:
        return _sparsemixer(logits, router.jitter)
    scores = _scores(logits, router.score)
    ids = routing.looked_up
    if ids is None:
        ids = _best(scores, router, routing.selection_bias)
    weights = scores.gather(-1, ids)
    return (weights.softmax(-1) if router.score is RouterScore.LOGIT else weights), ids


def _scores(logits: Tensor, score: RouterScore) -> Tensor:
    match score:
        case RouterScore.SOFTMAX:
            return logits.softmax(-1)
        case RouterScore.SIGMOID:
            return logits.sigmoid()
        case RouterScore.SQRT_SOFTPLUS:
            return softplus(logits).sqrt()
        case RouterScore.CONSTANT:
            return torch.ones_like(logits)
    return logits


def _best(scores: Tensor, router: RouterSpec, selection_bias: Tensor | None) -> Tensor:
    """The best experts of scores [T, E], the lower one where two are equal."""
    if selection_bias is not None:
        scores = scores + selection_bias
    if router.groups is not None:
        scores = _within_groups(scores, router.groups)
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_k]


def _within_groups(scores: Tensor, groups: ExpertGroups) -> Tensor:
    """-inf where an expert is in none of the best groups."""
    grouped = scores.view(len(scores), groups.count, -1)
    counted = 1 if groups.score is GroupScore.MAX else 2
    ranks = grouped.topk(counted, dim=-1).values.sum(-1)
    kept = ranks.sort(dim=-1, descending=True, stable=True).indices[:, : groups.kept]
    left_out = torch.ones_like(ranks, dtype=torch.bool).scatter(-1, kept, False)
    return grouped.masked_fill(left_out[..., None], -torch.inf).flatten(-2)


def _sparsemixer(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """The two best, each weighted by a softmax over the logits near it (Liu et al., 2024).

    The second's softmax leaves out the first.
    """
    left, weights, ids = logits, [], []
    for _ in range(2):
        best, at = left.max(-1, keepdim=True)
        distance = (best - logits) / torch.maximum(logits.abs(), best)
        near = left.masked_fill(distance > 2 * jitter, -torch.inf)
        weights.append(near.softmax(-1).gather(-1, at))
        ids.append(at)
        left = left.scatter(-1, at, -torch.inf)
    return torch.cat(weights, -1), torch.cat(ids, -1)


def scatter_plan(
    weights: Tensor, ids: Tensor, homes: Homes, ways: Tensor | None = None
) -> tuple[Part, ...]:
    """What each expert node is sent, one Part a node: only rows with an expert there.

    weights: float32 [T, K]. ids: int64 [T, K], global. ways: int64 [T], see `compute.ways`; where
    homes have but one they aren't looked at.
    """
    return _parts(_part, weights, ids, homes, ways)


def _part(here: Tensor, local_ids: Tensor, weights: Tensor) -> Part:
    """The part of one node; here: bool [T, K], true where a choice lives there."""
    rows = here.any(-1).nonzero().flatten()
    chosen = here[rows]
    return Part(
        rows=rows,
        local_ids=local_ids[rows].masked_fill(~chosen, -1),
        weights=weights[rows].masked_fill(~chosen, 0.0),
    )


def padded_plan(
    weights: Tensor,
    ids: Tensor,
    homes: Homes,
    ways: Tensor | None = None,
    counted: Tensor | None = None,
) -> tuple[Part, ...]:
    """`scatter_plan` for a host that must not ask a device how many rows there are: T for every
    node with a home. The first `count` are those rows; the others choose nothing of row 0.

    counted: int32 [1], of the tokens that aren't padding, which is sent nowhere; None: all."""
    return _parts(_padded_part, weights, ids, homes, ways, counted)


def _padded_part(here: Tensor, local_ids: Tensor, weights: Tensor) -> Part:
    some = here.any(-1)
    count = some.sum(dtype=torch.int32)[None]
    order = some.to(torch.uint8).argsort(descending=True, stable=True)
    counts = torch.arange(len(order), device=order.device) < count
    chosen = here[order] & counts[:, None]
    return Part(
        rows=order.masked_fill(~counts, 0),
        local_ids=local_ids[order].masked_fill(~chosen, -1),
        weights=weights[order].masked_fill(~chosen, 0.0),
        count=count,
    )


def _parts(
    part_of: Callable[[Tensor, Tensor, Tensor], Part],
    weights: Tensor,
    ids: Tensor,
    homes: Homes,
    ways: Tensor | None,
    counted: Tensor | None = None,
) -> tuple[Part, ...]:
    node, local_ids = _homes_of(ids, homes, ways)
    if counted is not None:
        padding = (torch.arange(len(ids), device=ids.device) >= counted)[:, None]
        node, local_ids = node.masked_fill(padding, -1), local_ids.masked_fill(padding, -1)
    if homes.num_nodes == 1:
        return (Part(torch.arange(len(ids), device=ids.device), local_ids, weights),)
    nothing = Part(ids.new_empty(0), local_ids[:0], weights[:0])
    return tuple(
        part_of(node == n, local_ids, weights) if n in homes.nodes else nothing
        for n in range(homes.num_nodes)
    )


def _homes_of(ids: Tensor, homes: Homes, ways: Tensor | None) -> tuple[Tensor, Tensor]:
    """Nodes and local ids of all choices, both [T, K]."""
    if homes.num_ways == 1:
        return homes.node[ids, 0], homes.local_id[ids, 0]
    assert ways is not None, "an expert's tokens are shared out, and these have no ways"
    return homes.node[ids, ways[:, None]], homes.local_id[ids, ways[:, None]]
