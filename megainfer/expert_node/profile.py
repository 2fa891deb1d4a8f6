"""T_e and T_c as this process has them, by rows of one attention node's micro-batch."""

import os
import select
from statistics import median
from time import monotonic

import torch

from megainfer.config import DTYPE_BYTES
from megainfer.errors import NodeDied
from megainfer.expert_node.experts import ExpertModel
from megainfer.m2n.mailbox import Dispatch
from megainfer.plan import Plan, profile_rows
from megainfer.topology import CoreAssignment

ROUNDS = 3
MAX_LAYERS = 4
WAKE_UPS = 50
WAKE_UP_TIMEOUT_SECONDS = 5.0


def profile_experts(model: ExpertModel, plan: Plan, node: int) -> list[tuple[int, float]]:
    """(rows, seconds a layer) with every attention node sending that many, spread evenly."""
    return [
        (
            rows,
            median(
                _seconds_a_layer(model, _dispatches(plan, node, rows), plan) for _ in range(ROUNDS)
            ),
        )
        for rows in profile_rows(plan.config.max_num_seqs)
    ]


def _seconds_a_layer(model: ExpertModel, dispatches: list[Dispatch], plan: Plan) -> float:
    layers = plan.spec.moe_layers[:MAX_LAYERS]
    outs = [torch.empty_like(dispatch.hidden) for dispatch in dispatches]
    started = monotonic()
    for layer in layers:
        model.forward(layer, dispatches, outs)
    return (monotonic() - started) / len(layers)


def _dispatches(plan: Plan, node: int, rows: int) -> list[Dispatch]:
    """What this node would be sent for `rows` tokens a source whose choices are uniform."""
    generator = torch.Generator().manual_seed(0)
    return [_dispatch(plan, node, source, rows, generator) for source in range(plan.num_attention)]


def _dispatch(
    plan: Plan, node: int, source: int, rows: int, generator: torch.Generator
) -> Dispatch:
    spec = plan.spec
    scores = torch.rand(rows, spec.num_experts, generator=generator)
    chosen = scores.topk(spec.top_k, dim=-1).indices
    local = torch.full((spec.num_experts,), -1, dtype=torch.int32)
    experts = plan.placement.experts_of(node)
    local[list(experts)] = torch.arange(len(experts), dtype=torch.int32)
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


def profile_transfer(plan: Plan) -> list[tuple[int, float]]:
    """(rows, seconds one way): waking the receiver, and one copy of the rows into the slot."""
    wake = _wake_up_seconds(plan.cores_of_attention(0))
    width = plan.spec.hidden_size * DTYPE_BYTES[plan.dtype]
    return [
        (rows, wake + _copy_seconds(rows * width))
        for rows in profile_rows(plan.config.max_num_seqs)
    ]


def _copy_seconds(size: int) -> float:
    source, target = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    samples = []
    for _ in range(ROUNDS):
        started = monotonic()
        target.copy_(source)
        samples.append(monotonic() - started)
    return median(samples)


def _wake_up_seconds(peer: CoreAssignment) -> float:
    """From ringing an eventfd to a process on `peer` that has woken: half of a round trip."""
    there, back = os.eventfd(0), os.eventfd(0)
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setaffinity(0, peer.cores)
            for _ in range(WAKE_UPS):
                _hear(there)
                os.eventfd_write(back, 1)
        finally:
            os._exit(0)  # never into the parent's code
    samples = [_round_trip(there, back) for _ in range(WAKE_UPS)]
    os.waitpid(pid, 0)
    os.close(there)
    os.close(back)
    return median(samples) / 2


def _round_trip(there: int, back: int) -> float:
    started = monotonic()
    os.eventfd_write(there, 1)
    _hear(back)
    return monotonic() - started


def _hear(bell: int) -> None:
    poller = select.poll()
    poller.register(bell, select.POLLIN)
    if not poller.poll(WAKE_UP_TIMEOUT_SECONDS * 1000):
        raise NodeDied("the process that answers the transfer profile is gone")
    os.eventfd_read(bell)
