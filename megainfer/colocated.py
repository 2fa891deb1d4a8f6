"""Both roles in one process over the `local` transport: the baseline to compare with.

The same nodes, scheduler, gather and kernels run as in separate processes; they take turns on all
of the machine's cores, and a message is a copy into memory of the same process.
"""

from collections.abc import Sequence
from typing import Any

import torch

from megainfer.attention_node.process import AttentionUnit, load_attention
from megainfer.control import ParentLink
from megainfer.expert_node.process import ExpertUnit, load_experts
from megainfer.m2n.local import LocalHub
from megainfer.messages import Loaded, Ready, Start
from megainfer.node_loop import START_TIMEOUT_SECONDS, Unit, progress_to, run_until_stopped
from megainfer.plan import Plan
from megainfer.stage_clock import Span


def run_colocated(link: ParentLink, plan: Plan) -> None:
    """Everything that the one process of a colocated instance does after the fork."""
    torch.set_num_threads(plan.torch_threads(plan.cores[0]))
    on_bytes = progress_to(link)
    loaded = [load_attention(plan, node, on_bytes) for node in range(plan.num_attention)]
    experts = [load_experts(plan, node, on_bytes) for node in range(plan.num_expert)]
    link.send(Loaded())
    m = link.expect(Start, START_TIMEOUT_SECONDS).micro_batches
    hub = LocalHub(plan.geometry(m))
    attention_units = [
        AttentionUnit(plan, node, model, kv, hub.attention_port(node), m)
        for node, (model, kv) in enumerate(loaded)
    ]
    expert_units = [
        ExpertUnit(plan, node, model, hub.expert_port(node), m)
        for node, model in enumerate(experts)
    ]
    link.send(Ready())
    run_until_stopped(link, ColocatedUnit(attention_units, expert_units))


class ColocatedUnit:
    """Attention and expert nodes that take turns in one thread."""

    def __init__(self, attention: Sequence[AttentionUnit], experts: Sequence[ExpertUnit]) -> None:
        self._attention = attention
        self._experts = experts
        self._units: tuple[Unit, ...] = (*attention, *experts)

    def run_once(self) -> bool:
        # Attention first, all of it: what the experts then find waiting is as much as can wait.
        worked = 0
        for unit in self._units:
            worked += unit.run_once()
        return worked > 0

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        bound = min(unit.node.sleep_bound(timeout) for unit in self._experts)
        watched = (*fds, *(unit.fileno() for unit in self._attention))
        if not any(unit.pending() for unit in self._attention):
            self._attention[0].wait(bound, watched)

    def counters(self) -> dict[str, Any]:
        return {name: own for unit in self._units for name, own in unit.counters().items()}

    def take_spans(self) -> dict[str, list[Span]]:
        return {name: own for unit in self._units for name, own in unit.take_spans().items()}

    def close(self) -> None:
        for unit in self._units:
            unit.close()
