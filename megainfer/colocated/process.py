"""The one process of a colocated instance: load, serve."""

from collections.abc import Sequence
from typing import Any

from megainfer.attention_node.process import AttentionUnit, load_attention
from megainfer.attention_node.warm_up import warm_up
from megainfer.colocated.graphs import with_step_graphs
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.backend import Backend
from megainfer.device import marks_of
from megainfer.errors import ProtocolError
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.process import load_experts
from megainfer.instruments.stage_clock import Span, StageClock
from megainfer.launch.computing import computing
from megainfer.launch.heartbeat import Workload
from megainfer.launch.node_loop import PULSE_SECONDS, progress_to, run_until_stopped
from megainfer.launch.node_start import await_serve, await_start
from megainfer.launch.plan import Plan
from megainfer.launch.station import Station
from megainfer.m2n.absent import AbsentPort
from megainfer.m2n.counters import Counters
from megainfer.m2n.roads import Seat
from megainfer.messages.from_child import Connected, Loaded, Ready
from megainfer.messages.message import Message, Role
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import Meet
from megainfer.messages.weights import WeightFiles
from megainfer.topology import Membership


def run_colocated(station: Station, plan: Plan, weights: WeightFiles) -> None:
    """Everything that the one process of a colocated instance does after the fork.

    weights: what it loads.
    """
    with computing(plan, Role.ATTENTION, 0) as backend:
        _run(station, plan, weights, backend)


def _run(station: Station, plan: Plan, weights: WeightFiles, backend: Backend) -> None:
    link = station.link
    on_bytes = progress_to(link)
    attention, kv = load_attention(plan, backend, on_bytes, weights)
    experts = load_experts(plan, 0, backend, on_bytes, weights=weights)
    clock = StageClock(plan.config.trace, marks_of(backend.device))
    if not backend.device.is_host:  # with a clock of its own: nobody has asked for these steps
        warm_up(ColocatedModel(attention, experts, kv, StageClock()), kv, plan)
    alone = ColocatedModel(attention, experts, kv, clock)
    model = with_step_graphs(plan, alone, kv, progress_to(link, "recording steps", 4))
    backend.device.seal()
    link.send(Loaded())
    seat = Seat(plan.geometry(await_start(link)), 0, incarnation=station.incarnation)
    serve = await_serve(link, _meet, _measured)
    work = Workload(station.page)
    port = AbsentPort(backend.device)
    unit = AttentionUnit(plan, seat, model, kv, port, serve, work, weights)
    link.send(Ready())
    run_until_stopped(link, ColocatedUnit(unit, experts, clock), work, PULSE_SECONDS)


def _meet(message: Meet) -> None:
    raise ProtocolError("there is nobody to meet for a colocated instance, but it was told to")


def _measured(among: Membership) -> Connected:
    return Connected()


class ColocatedUnit:
    """An attention node with all experts; its counters and spans are told as of two nodes."""

    def __init__(self, unit: AttentionUnit, experts: ExpertModel, expert_clock: StageClock) -> None:
        self._unit = unit
        self._experts = experts
        self._expert_clock = expert_clock

    def run_once(self) -> bool:
        return self._unit.run_once()

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        self._unit.wait(timeout, fds)

    def enter(self, membership: Membership) -> None:
        self._unit.enter(membership)

    def hear(self, message: ToChild) -> None:
        self._unit.hear(message)

    def news(self) -> Sequence[Message]:
        return self._unit.news()

    def counters(self) -> dict[str, Any]:
        counted = self._experts.counters()
        experts = {
            **self._expert_clock.counters(),
            **Counters().as_dict(),
            "expert_tokens": counted["expert_tokens"],
            "experts_held": counted["experts_held"],
        }
        return {**self._unit.counters(), "expert node 0": experts}

    def keep_spans(self, count: int) -> None:
        self._unit.keep_spans(count)
        self._expert_clock.keep_latest(count)

    def take_spans(self) -> dict[str, list[Span]]:
        return {**self._unit.take_spans(), "expert node 0": self._expert_clock.take_spans()}

    def close(self) -> None:
        self._unit.close()
