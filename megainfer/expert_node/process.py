"""The process of an expert node: load, connect, measure, serve."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

from megainfer.checkpoint.lacking import lacking
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.device import Device, memory_counters
from megainfer.errors import ProtocolError
from megainfer.expert_node.experts import ExpertModel, Place
from megainfer.expert_node.handover.asking import Asking
from megainfer.expert_node.handover.giving import Giver
from megainfer.expert_node.handover.terms import HandoverTerms
from megainfer.expert_node.moving import Mover
from megainfer.expert_node.node import ExpertNode
from megainfer.expert_node.other_ranks import ALONE, ExpertRanks, Rank
from megainfer.expert_node.profile import profile_experts
from megainfer.expert_node.transfer_profile import answer_transfers
from megainfer.expert_node.warm_up import record, warm_up
from megainfer.gather import Gather
from megainfer.instruments.stage_clock import Span
from megainfer.launch.computing import computing
from megainfer.launch.fit import experts_on_the_move
from megainfer.launch.heartbeat import Workload
from megainfer.launch.node_loop import PULSE_SECONDS, progress_to, run_until_stopped
from megainfer.launch.node_start import await_serve, await_start
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import LeadingSeat
from megainfer.launch.renewing import Renewer, reader_of
from megainfer.launch.station import Station
from megainfer.m2n.mailbox import ExpertPort
from megainfer.m2n.roads import Seat, join_expert
from megainfer.m2n.staged import expert_port_for
from megainfer.messages.from_child import Connected, Loaded, Opened, Ready
from megainfer.messages.message import Message, Role
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import Meet, Prepare
from megainfer.messages.weights import OF_FOLDER, GivingNode, WeightFiles
from megainfer.models.sources import expert_sources
from megainfer.ranks.layout import RowsLayout
from megainfer.topology import Membership, Placement, Shard


def run_expert(
    station: Station,
    plan: Plan,
    node: int,
    measures: bool,
    placement: Placement,
    weights: WeightFiles,
    seat: LeadingSeat[RowsLayout] | None = None,
    givers: tuple[GivingNode, ...] | None = None,
) -> None:
    """Everything that the process of expert node `node` does after the fork, its first with tensor
    parallelism.

    measures: whether the choice of m waits for what its stages take. placement, weights: what it
    loads. seat: among the node's ranks, where there are several. givers: as `NodeTask` has them;
    ranks ask nobody, and give nothing.
    """
    hands_over = givers is not None and plan.config.ffn_tp == 1
    with computing(plan, Role.EXPERT, node) as backend:
        link, device, on_bytes = station.link, backend.device, progress_to(station.link)
        others = None
        if seat is not None:
            others = ExpertRanks(seat, node, plan.spin_seconds, device, station.page)
        rank = ALONE if others is None else Rank(Shard(0, plan.config.ffn_tp), others)
        asking = asked(plan, givers or (), weights) if hands_over else None
        model = load_experts(plan, node, backend, on_bytes, placement, weights, rank, asking)
        if others is not None:
            others.await_loaded()
        warm_up(model, plan, node, device)
        record(model, plan, node, progress_to(link, "recording stages", 4))
        device.seal()
        measured = profile_experts(model, plan, node, device) if measures else []
        link.send(Loaded(stage_seconds=measured))
        terms = HandoverTerms.of(plan, weights.version.number) if hands_over else None
        giver = None if terms is None else Giver(node, model, terms)
        with nullcontext() if giver is None else closing(giver):
            _serve(station, plan, node, model, weights, device, others, giver)


def asked(plan: Plan, givers: Sequence[GivingNode], weights: WeightFiles) -> Asking | None:
    """Who is asked for experts: nobody where the model's folder has all files."""
    if not givers or weights.files or lacking(plan.folder) == set():
        return None
    return Asking(givers, HandoverTerms.of(plan, weights.version.number))


def _serve(
    station: Station,
    plan: Plan,
    node: int,
    model: ExpertModel,
    weights: WeightFiles,
    device: Device,
    others: ExpertRanks | None,
    giver: Giver | None,
) -> None:
    link = station.link
    seat = Seat(plan.roomy_geometry(await_start(link)), node, incarnation=station.incarnation)
    joined = join_expert(plan.road, seat, device)
    port = expert_port_for(device, joined)
    opened = Opened(joined.address, None if giver is None else giver.address)
    m = await_serve(link, _meet, partial(_measured, port), opened).micro_batches
    work = Workload(station.page)
    unit = ExpertUnit(plan, node, model, port, m, work, weights, others)
    link.send(Ready())
    run_until_stopped(link, unit, work, PULSE_SECONDS)


def _meet(message: Meet) -> None:
    raise ProtocolError(f"expert nodes are met by attention nodes, but it was told {message}")


def _measured(port: ExpertPort, among: Membership) -> Connected:
    """Answer attention nodes while they measure."""
    port.set_epoch(among.epoch, among.attention)
    answer_transfers(port, len(among.attention))
    return Connected()


def load_experts(
    plan: Plan,
    node: int,
    backend: Backend,
    on_bytes: Callable[[int, int], None],
    placement: Placement | None = None,
    weights: WeightFiles = OF_FOLDER,
    rank: Rank = ALONE,
    asking: Asking | None = None,
) -> ExpertModel:
    """The experts of one node by a placement, the plan's unless given; `on_bytes` hears (bytes in
    place, bytes in all). rank: of the node, as for `ExpertModel`. asking: who gives them, before
    files are read; it is closed."""
    placement = placement or plan.placement
    shard, moving = rank.shard, experts_on_the_move(plan.config)
    model: ExpertModel | None = None
    left: list[Place] = []
    if asking is not None:
        with closing(asking):
            model = ExpertModel(plan.spec, None, placement, node, backend, rank, moving)
            if not (left := model.bring(asking.prepared)):
                return model
    threads = plan.cores_of_expert(node, shard.rank).threads
    with reader_of(plan, weights, threads=threads) as reader:
        total = reader.total_bytes(expert_sources(plan.spec, placement.held_by(node), shard))
        reader.on_bytes = lambda done: on_bytes(done, total)
        if model is None:
            return ExpertModel(plan.spec, reader, placement, node, backend, rank, moving)
        model.load(reader, left)
        return model


class ExpertUnit:
    """The node as the process loop runs it."""

    def __init__(
        self,
        plan: Plan,
        node: int,
        model: ExpertModel,
        port: ExpertPort,
        micro_batches: int,
        work: Workload,
        weights: WeightFiles,
        others: ExpertRanks | None = None,
    ) -> None:
        self._index = node
        self._others = others
        self._links = None if others is None else others.links
        gather = Gather(micro_batches, plan.spec.first_moe_layer)
        self.node = ExpertNode(model, gather, port, plan.config.trace, work)
        self._plan, self._port = plan, port
        self._batches_seen = 0
        self._renewer = Renewer(weights, self._open_reader, model.renewed, self._is_busy)
        self._mover = Mover(
            model,
            lambda: self._open_reader(self._renewer.weights),
            lambda wish: asked(plan, wish.givers, self._renewer.weights),
        )

    def run_once(self) -> bool:
        return self.node.run_once()

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        bound = self._mover.sleep_bound(self.node.sleep_bound(timeout))
        if self._links is not None:
            bound = self._links.sleep_bound(bound)
        self._port.wait(self._renewer.sleep_bound(bound), fds)

    def enter(self, membership: Membership) -> None:
        if self._links is not None:
            self._links.enter(membership)
        self.node.enter(membership, self._renewer.take(membership.weights))

    def hear(self, message: ToChild) -> None:
        if not isinstance(message, Prepare):
            raise ProtocolError(f"an expert node was told {message}")
        if self._links is not None:
            self._links.prepare(message)
        self._renewer.prepare(message)
        if message.weights.version == self._renewer.weights.version:
            self._mover.prepare(message)
        else:
            self._mover.close()  # whatever it still reads is of weights that go

    def news(self) -> Sequence[Message]:
        if self._others is not None:
            self._others.check()
        own = [*self._mover.news(), *self._renewer.news()]
        return own if self._links is None else [*self._links.agreed(own)]

    def counters(self) -> dict[str, Any]:
        ranks = {"ranks": self._plan.config.ffn_tp}
        counted = {**self.node.counters(), **ranks, **memory_counters(self._port.device)}
        return {f"expert node {self._index}": counted}

    def keep_spans(self, count: int) -> None:
        self.node.clock.keep_latest(count)

    def take_spans(self) -> dict[str, list[Span]]:
        return {f"expert node {self._index}": self.node.clock.take_spans()}

    def _open_reader(self, weights: WeightFiles) -> WeightReader:
        return reader_of(self._plan, weights, device=self._port.device)

    def _is_busy(self) -> bool:
        """Whether it has computed anything since this was last asked."""
        before, self._batches_seen = self._batches_seen, self.node.num_batches
        return self._batches_seen > before

    def close(self) -> None:
        self._renewer.drop()
        self._mover.close()
        if self._others is not None:
            self._others.close()
        self._port.close()
