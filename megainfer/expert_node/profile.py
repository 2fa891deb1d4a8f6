"""T_e as this process has it, by rows of one attention node's micro-batch."""

from statistics import median
from time import monotonic

import torch

from megainfer.device import Device, settle
from megainfer.expert_node.experts import ExpertModel
from megainfer.launch.plan import Plan
from megainfer.m2n.mailbox import Dispatch

ROUNDS = 3
MAX_LAYERS = 4


def profile_experts(
    model: ExpertModel, plan: Plan, node: int, device: Device
) -> list[tuple[int, float]]:
    """(rows, seconds a layer) with every attention node sending that many, spread evenly; device:
    the model's."""
    return [
        (
            rows,
            median(
                _seconds_a_layer(model, dispatches_of(plan, node, rows, device), plan, device)
                for _ in range(ROUNDS)
            ),
        )
        for rows in plan.profiled_rows
    ]


def _seconds_a_layer(
    model: ExpertModel, dispatches: list[Dispatch], plan: Plan, device: Device
) -> float:
    layers = plan.spec.moe_layers[:MAX_LAYERS]
    outs = [torch.empty_like(dispatch.hidden) for dispatch in dispatches]
    settle(device)
    started = monotonic()
    for layer in layers:
        model.forward(layer, dispatches, outs)
    settle(device)
    return (monotonic() - started) / len(layers)


def dispatches_of(plan: Plan, node: int, rows: int, device: Device) -> list[Dispatch]:
    """What this node would be sent for `rows` tokens a source whose choices are uniform."""
    generator = torch.Generator().manual_seed(0)
    messages = (
        _dispatch(plan, node, source, rows, generator) for source in range(plan.num_attention)
    )
    return [
        message._replace(
            hidden=device.upload(message.hidden),
            local_ids=device.upload(message.local_ids),
            weights=device.upload(message.weights),
        )
        for message in messages
    ]


def _dispatch(
    plan: Plan, node: int, source: int, rows: int, generator: torch.Generator
) -> Dispatch:
    spec = plan.spec
    scores = torch.rand(rows, spec.num_experts, generator=generator)
    chosen = scores.topk(spec.top_k, dim=-1).indices
    local = torch.full((spec.num_experts,), -1, dtype=torch.int32)
    # As if spares were sent nothing: of each expert the first holder is.
    for expert, homes in enumerate(plan.placement.homes(spec.first_moe_layer)):
        if homes[0][0] == node:
            local[expert] = homes[0][1]
    local_ids = local[chosen]
    here = (local_ids >= 0).any(dim=-1)
    hidden = torch.randn(rows, spec.hidden_size, generator=generator)
    return Dispatch(
        source=source,
        micro_batch=0,
        layer=spec.first_moe_layer,
        sequence=0,
        hidden=hidden[here].to(getattr(torch, plan.dtype)),
        local_ids=local_ids[here],
        weights=torch.full((int(here.sum()), spec.top_k), 1 / spec.top_k),
    )
