"""Gated feed-forward networks: one for all tokens, or many with their tokens grouped."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from megainfer.models.spec import SILU, Activation, ActivationSpec


class Groups(NamedTuple):
    """A node's choices sorted by expert.

    order: int64 [C], indices into the flattened ids, expert by expert, in row order within one.
    counts: for each local expert, how many choices it got (C in all).
    """

    order: Tensor
    counts: list[int]


class Network(NamedTuple):
    """gate_up: [2F, D], gate first. down: [D, F]. biases: [2F] and [D]."""

    gate_up: Tensor
    down: Tensor
    activation: ActivationSpec = SILU
    biases: tuple[Tensor, Tensor] | None = None


def feed_forward(x: Tensor, network: Network) -> Tensor:
    """down(activation(gate(x)) * (up(x) + offset)): x [T, D] -> [T, D]."""
    gate_up_bias, down_bias = network.biases or (None, None)
    gate, up = linear(x, network.gate_up, gate_up_bias).chunk(2, dim=-1)
    return linear(inner(gate, up, network.activation), network.down, down_bias)


def inner(gate: Tensor, up: Tensor, activation: ActivationSpec) -> Tensor:
    """What goes into down, see `ActivationSpec`: [..., F]."""
    if activation.limit is not None:
        gate = gate.clamp(max=activation.limit)
        up = up.clamp(-activation.limit, activation.limit)
    if activation.up_offset:
        up = up + activation.up_offset
    return _activated(gate, activation) * up


def _activated(gate: Tensor, activation: ActivationSpec) -> Tensor:
    match activation.kind:
        case Activation.GELU:
            return gelu(gate)
        case Activation.GELU_TANH:
            return gelu(gate, approximate="tanh")
    if activation.alpha != 1:
        return gate * torch.sigmoid(activation.alpha * gate)
    return silu(gate)


def group_by_expert(local_ids: Tensor, num_experts: int) -> Groups:
    """Sort the choices local_ids, int32 [R, K], by expert; -1 (not here) is left out."""
    flat = local_ids.flatten()
    absent, *counts = torch.bincount(flat + 1, minlength=num_experts + 1).tolist()
    return Groups(flat.argsort(stable=True)[absent:], counts)


def grouped_feed_forward(
    x: Tensor,
    weights: Tensor,
    groups: Groups,
    networks: Sequence[Network | None],
    weight_on_input: bool = False,
) -> Tensor:
    """Each row's chosen experts, weighted and summed: x [R, D] -> float32 [R, D].

    weights: float32 [R, K]; those of choices that are not in `groups` are not used.
    weight_on_input: they multiply x instead of what the experts give. Rows without a choice here
    give zeros.
    """
    rows = x[groups.order // weights.shape[1]]
    if weight_on_input:
        rows = rows * weights.flatten()[groups.order, None].to(x.dtype)
        weights = torch.ones_like(weights)
    results = [
        feed_forward(own, network)
        for own, network in zip(rows.split_with_sizes(groups.counts), networks, strict=True)
        if len(own) and network is not None
    ]
    outputs = torch.zeros(*weights.shape, x.shape[1], dtype=torch.float32, device=x.device)
    if results:
        outputs.flatten(0, 1)[groups.order] = torch.cat(results).to(torch.float32)
    return (outputs * weights[..., None]).sum(1)


def every_feed_forward(
    x: Tensor,
    weights: Tensor,
    local_ids: Tensor,
    networks: Sequence[Network | None],
    weight_on_input: bool = False,
) -> Tensor:
    """`grouped_feed_forward` for a host that must not ask a device what rows chose: each network
    computes all choices, and those that are its own are kept."""
    top_k, flat = weights.shape[1], local_ids.flatten()[:, None]
    rows = x.repeat_interleave(top_k, 0)
    if weight_on_input:
        rows = rows * weights.flatten()[:, None].to(x.dtype)
        weights = torch.ones_like(weights)
    outputs = torch.zeros(len(rows), x.shape[1], dtype=torch.float32, device=x.device)
    for expert, network in enumerate(networks):
        if network is None:
            continue
        own = feed_forward(rows, network).to(torch.float32)
        outputs = torch.where(flat == expert, own, outputs)
    return (outputs.view(*weights.shape, -1) * weights[..., None]).sum(1)


def choices_of_each(local_ids: Tensor, num_experts: int) -> Tensor:
    """How many of the choices, int32 [R, K], each local expert got: int64 [E]."""
    experts = torch.arange(num_experts, device=local_ids.device)
    return (local_ids.flatten()[:, None] == experts).sum(0)
