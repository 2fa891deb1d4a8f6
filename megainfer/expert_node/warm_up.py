"""Batches that nobody asked for, before an expert node serves on a device."""

from collections.abc import Sequence

from megainfer.device import Device, OnGraph
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.profile import dispatches_of
from megainfer.expert_node.stage_graphs import StageBounds
from megainfer.launch.plan import Plan


def warm_up(model: ExpertModel, plan: Plan, node: int, device: Device) -> None:
    """Compile kernels and take the memory of the largest batch; not on the host, which does
    neither."""
    if device.is_host:
        return
    layer = plan.spec.first_moe_layer
    for rows in _sizes(plan):
        dispatches = dispatches_of(plan, node, rows, device)
        outs = [device.empty(message.hidden.shape, message.hidden.dtype) for message in dispatches]
        model.forward(layer, dispatches, outs)


def record(model: ExpertModel, plan: Plan, node: int, on_graph: OnGraph) -> None:
    """Have the device record the stages of decode steps where the plan has room for that; the node
    was warmed up."""
    most_bytes = plan.expert_ledger(node).of("graphs")
    if most_bytes:
        rows = min(plan.config.max_num_seqs, plan.config.max_num_batched_tokens)
        sources = plan.most_attention
        model.record(StageBounds(sources, sources * rows, most_bytes), on_graph)


def _sizes(plan: Plan) -> Sequence[int]:
    """Of a micro-batch: those that are profiled, and a whole step."""
    return sorted({*plan.profiled_rows, plan.config.max_num_batched_tokens})
