"""Batches that nobody asked for, before an expert node serves on a device."""

from collections.abc import Sequence

from megainfer.device import Device
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.profile import dispatches_of
from megainfer.launch.plan import Plan


def warm_up(model: ExpertModel, plan: Plan, node: int, device: Device) -> None:
    """Compile kernels and take the memory of the largest batch, and seal the device; not on the
    host, which does neither."""
    if device.is_host:
        return
    layer = plan.spec.first_moe_layer
    for rows in _sizes(plan):
        dispatches = dispatches_of(plan, node, rows, device)
        outs = [device.empty(message.hidden.shape, message.hidden.dtype) for message in dispatches]
        model.forward(layer, dispatches, outs)
    device.seal()


def _sizes(plan: Plan) -> Sequence[int]:
    """Of a micro-batch: those that are profiled, and a whole step."""
    return sorted({*plan.profiled_rows, plan.config.max_num_batched_tokens})
