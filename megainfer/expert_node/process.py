"""The process of an expert node: load, connect, measure, serve."""

from collections.abc import Callable, Sequence
from typing import Any

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.node import ExpertNode
from megainfer.expert_node.profile import profile_experts
from megainfer.expert_node.transfer_profile import answer_transfers
from megainfer.gather import Gather
from megainfer.instruments.stage_clock import Span
from megainfer.launch.computing import backend_of
from megainfer.launch.control import ParentLink
from megainfer.launch.node_loop import (
    CONNECT_TIMEOUT_SECONDS,
    PULSE_SECONDS,
    START_TIMEOUT_SECONDS,
    progress_to,
    run_until_stopped,
)
from megainfer.launch.plan import Plan
from megainfer.m2n.mailbox import ExpertPort
from megainfer.m2n.roads import Seat, open_expert_port
from megainfer.messages import Connected, Loaded, Ready, Serve, Start
from megainfer.models.sources import expert_sources
from megainfer.topology import Membership


def run_expert(link: ParentLink, plan: Plan, node: int) -> None:
    """Everything that the process of expert node `node` does after the fork."""
    backend = backend_of(plan, plan.cores_of_expert(node))
    model = load_experts(plan, node, backend, progress_to(link))
    measure = plan.micro_batches is None
    link.send(Loaded(stage_seconds=profile_experts(model, plan, node) if measure else []))
    start = link.expect(Start, START_TIMEOUT_SECONDS)
    seat = Seat(plan.geometry(start.micro_batches), node, start.membership.epoch)
    port = open_expert_port(plan.road, seat, CONNECT_TIMEOUT_SECONDS)
    if measure:
        answer_transfers(port, plan.num_attention)
    link.send(Connected())
    m = link.expect(Serve, START_TIMEOUT_SECONDS).micro_batches
    unit = ExpertUnit(plan, node, model, port, m)
    unit.enter(start.membership)
    link.send(Ready())
    run_until_stopped(link, unit, PULSE_SECONDS)


def load_experts(
    plan: Plan, node: int, backend: Backend, on_bytes: Callable[[int, int], None]
) -> ExpertModel:
    """The experts of one node; `on_bytes` hears (bytes in place, bytes in all)."""
    with WeightReader(plan.folder, threads=plan.cores_of_expert(node).threads) as reader:
        total = reader.total_bytes(expert_sources(plan.spec, plan.placement.held_by(node)))
        reader.on_bytes = lambda done: on_bytes(done, total)
        return ExpertModel(plan.spec, reader, plan.placement, node, backend)


class ExpertUnit:
    """The node as the process loop runs it."""

    def __init__(
        self, plan: Plan, node: int, model: ExpertModel, port: ExpertPort, micro_batches: int
    ) -> None:
        self._index = node
        gather = Gather(micro_batches, plan.spec.first_moe_layer)
        self.node = ExpertNode(model, gather, port, plan.config.trace)
        self._port = port

    def run_once(self) -> bool:
        return self.node.run_once()

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        self._port.wait(self.node.sleep_bound(timeout), fds)

    def enter(self, membership: Membership) -> None:
        self.node.enter(membership)

    def counters(self) -> dict[str, Any]:
        return {f"expert node {self._index}": self.node.counters()}

    def keep_spans(self, count: int) -> None:
        self.node.clock.keep_latest(count)

    def take_spans(self) -> dict[str, list[Span]]:
        return {f"expert node {self._index}": self.node.clock.take_spans()}

    def close(self) -> None:
        self._port.close()
