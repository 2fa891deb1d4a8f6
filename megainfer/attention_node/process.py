"""The process of an attention node: load, connect, measure, serve."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from megainfer.attention_node.compiling import Compiling
from megainfer.attention_node.front_ends import FrontEnds
from megainfer.attention_node.graphs import with_graphs
from megainfer.attention_node.model import AttentionModel, StepModel
from megainfer.attention_node.node import AttentionNode
from megainfer.attention_node.parts import NodeParts, NodeSettings
from megainfer.attention_node.peers import Peers
from megainfer.attention_node.profile import profile_attention
from megainfer.attention_node.ranks.leading import ALONE, HalfRanks, Rank
from megainfer.attention_node.routing_record import RoutingRecord
from megainfer.attention_node.row_costs import scored_row_cost
from megainfer.attention_node.scheduling.config import (
    FAIR_PROMPT_ROWS_ON_CPUS,
    FAIR_PROMPT_ROWS_ON_GPUS,
    SchedulerConfig,
)
from megainfer.attention_node.scheduling.load_tuner import LoadTuner, NoTuner, Tuner
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.attention_node.scheduling.tuning import MicroBatchTuner
from megainfer.attention_node.transfer_profile import profile_transfer, profile_waking
from megainfer.attention_node.warm_up import warm_up
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.compute.kv_cache import KVCache
from megainfer.config import BLOCK_SIZE
from megainfer.device import memory_counters
from megainfer.instruments.stage_clock import Span
from megainfer.launch.computing import computing
from megainfer.launch.heartbeat import Workload
from megainfer.launch.node_loop import PULSE_SECONDS, progress_to, run_until_stopped
from megainfer.launch.node_start import await_serve, await_start
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import LeadingSeat
from megainfer.launch.renewing import Renewer, reader_of
from megainfer.launch.station import Station
from megainfer.m2n.mailbox import AttentionPort
from megainfer.m2n.roads import Seat, join_attention
from megainfer.m2n.staged import attention_port_for
from megainfer.messages.from_child import Connected, Loaded, Ready
from megainfer.messages.message import Message, Role
from megainfer.messages.pausing import PauseSet, SetPause
from megainfer.messages.requests import NodeReady
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import FrontEndDown, FrontEndUp, Meet, Prepare, Serve
from megainfer.messages.weights import OF_FOLDER, WeightFiles
from megainfer.models.sources import attention_sources
from megainfer.ranks.layout import HalfLayout
from megainfer.topology import Membership, Shard

if TYPE_CHECKING:
    from megainfer.structured.compiler import GrammarCompiler


def run_attention(
    station: Station,
    plan: Plan,
    node: int,
    measures: bool,
    weights: WeightFiles,
    seat: LeadingSeat[HalfLayout] | None = None,
) -> None:
    """Everything that the process of attention node `node` does after the fork, its first with
    tensor parallelism.

    measures: whether the choice of m waits for what its stages take. weights: what it loads. seat:
    among the node's ranks, where there are several.
    """
    with computing(plan, Role.ATTENTION, node) as backend:
        spin, device = plan.spin_seconds, backend.device
        others = None
        if seat is not None:
            others = HalfRanks(seat, node, plan.spec, spin, device, station.page)
        _run(station, plan, node, measures, weights, backend, others)


def _run(
    station: Station,
    plan: Plan,
    node: int,
    measures: bool,
    weights: WeightFiles,
    backend: Backend,
    others: HalfRanks | None,
) -> None:
    link = station.link
    rank = ALONE if others is None else Rank(Shard(0, plan.config.attn_tp), others)
    model, kv = load_attention(plan, backend, progress_to(link), weights, rank)
    if others is not None:
        others.await_loaded()
    warm_up(model, kv, plan)
    served = with_graphs(plan, model, kv, progress_to(link, "recording stages", 4))
    kv.device.seal()
    link.send(Loaded(stage_seconds=profile_attention(served, kv, plan) if measures else []))
    seat = Seat(plan.roomy_geometry(await_start(link)), node, incarnation=station.incarnation)
    port = attention_port_for(
        backend.device, join_attention(plan.road, seat, backend.device, backend.packing)
    )
    peers = Peers(link, port, plan.road, node)
    serve = await_serve(link, peers.meet, partial(_measured, port, plan, node))
    work = Workload(station.page)
    unit = AttentionUnit(plan, seat, served, kv, port, serve, work, weights, peers, others)
    link.send(Ready())
    run_until_stopped(link, unit, work, PULSE_SECONDS)


def _measured(port: AttentionPort, plan: Plan, node: int, among: Membership) -> Connected:
    """What transfers take while every attention node sends, and what waking takes, which only one
    can measure: others would keep the expert nodes awake."""
    port.set_epoch(among.epoch, among.experts)
    geometry = replace(plan.geometry(plan.most_micro_batches), num_expert=len(among.experts))
    transfer = profile_transfer(port, geometry, plan.profiled_rows)
    waking = profile_waking(port, geometry, plan.spin_seconds) if node == 0 else 0.0
    port.rest(0)
    return Connected(transfer_seconds=transfer, waking_seconds=waking)


def load_attention(
    plan: Plan,
    backend: Backend,
    on_bytes: Callable[[int, int], None],
    weights: WeightFiles = OF_FOLDER,
    rank: Rank = ALONE,
) -> tuple[AttentionModel, KVCache]:
    """These weights and an empty KV cache, or a rank's part of both; `on_bytes` hears (bytes in
    place, bytes in all)."""
    with reader_of(plan, weights, device=backend.device) as reader:
        total = reader.total_bytes(attention_sources(plan.spec, rank.shard))
        reader.on_bytes = lambda done: on_bytes(done, total)
        model = AttentionModel(plan.spec, reader, plan.placement, backend, plan.max_model_len, rank)
    if plan.routing_bytes and rank.shard.leads:
        model.record = RoutingRecord(plan.spec, plan.placement, plan.num_blocks)
    spare = bool(plan.attention_ledger().of("graphs"))  # what is nobody's, for padding
    states = plan.num_states + spare if plan.num_states else 0
    return model, model.new_cache(plan.num_blocks + spare, states)


class AttentionUnit:
    """The node with its front ends, as the process loop runs it."""

    def __init__(
        self,
        plan: Plan,
        seat: Seat,
        model: StepModel,
        kv: KVCache,
        port: AttentionPort,
        serve: Serve,
        work: Workload,
        weights: WeightFiles,
        peers: Peers | None = None,
        others: HalfRanks | None = None,
    ) -> None:
        node = seat.index
        self._others = others
        self._links = None if others is None else others.links
        ready = NodeReady(
            node=node,
            max_model_len=plan.max_model_len,
            max_num_seqs=plan.config.max_num_seqs,
            incarnation=seat.incarnation,
        )
        self._front_ends = FrontEnds(plan.front_endpoint, ready)
        self._port = port
        self._model, self._device = model, kv.device
        self._peers = peers
        self._plan = plan
        self._tuner = _tuner(serve)
        self._compiling = compiling_for(plan)
        self._compiling.prepare()
        parts = NodeParts(
            model=model,
            kv=kv,
            scheduler=Scheduler(scheduler_config(plan, serve.micro_batches)),
            port=port,
            emit=self._front_ends.emit,
            device=kv.device,
            compiling=self._compiling,
            tuner=self._tuner,
            work=work,
        )
        parts.scheduler.renew(weights.version.name)
        self.node = AttentionNode(parts, NodeSettings(node, trace=plan.config.trace))
        self._renewer = Renewer(weights, self._open_reader, model.renewed, self._is_busy)
        self._wish: SetPause | None = None  # that hasn't come about

    def run_once(self) -> bool:
        for message in self._front_ends.receive():
            self.node.hear(message)
        return self.node.run_once()

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        if not self.pending():
            own = (*self._front_ends.filenos(), self._compiling.fileno())
            bound = self._renewer.sleep_bound(self.node.sleep_bound(timeout))
            if self._links is not None:
                bound = self._links.sleep_bound(bound)
            self._port.wait(bound, (*fds, *own))

    def pending(self) -> bool:
        """Whether there is something new that `run_once` would take in."""
        return self._front_ends.pending() or self._compiling.pending()

    def enter(self, membership: Membership) -> None:
        if self._links is not None:
            self._links.enter(membership)
        self.node.enter(membership, self._renewer.take(membership.weights))
        self._tuner.enter(len(membership.attention) > 1, self.node.scheduler)
        if self._peers is not None:
            self._peers.enter()

    def hear(self, message: ToChild) -> None:
        match message:
            case Meet() if self._peers is not None:
                self._peers.meet(message)
            case FrontEndUp() | FrontEndDown():
                self._front_ends.hear(message)
            case Prepare():
                self._prepare(message)
            case SetPause():
                self._wish = message
                self.node.intake.pause(message.mode)

    def news(self) -> Sequence[Message]:
        if self._others is not None:
            self._others.check()
        prepared = self._renewer.news()
        if self._links is not None:
            prepared = [*self._links.agreed(prepared)]
        told: list[Message] = [*prepared, *self._paused()]
        return told if self._peers is None else [*told, *self._peers.news()]

    def counters(self) -> dict[str, Any]:
        own: dict[str, Any] = {"ranks": self._plan.config.attn_tp, **self._model.counters()}
        if self._peers is not None:
            own["m2n_roads"] = self._peers.roads()
        of_device = memory_counters(self._device)
        return {f"attention node {self.node.node}": {**self.node.counters(), **own, **of_device}}

    def keep_spans(self, count: int) -> None:
        self.node.clock.keep_latest(count)

    def take_spans(self) -> dict[str, list[Span]]:
        return {f"attention node {self.node.node}": self.node.clock.take_spans()}

    def _prepare(self, wish: Prepare) -> None:
        if self._links is not None:
            new = wish.weights.version != self._renewer.weights.version
            self._links.prepare(wish, answered=new)
        self._renewer.prepare(wish)

    def _paused(self) -> Sequence[Message]:
        """That the pause has come about, or its end, once."""
        wish = self._wish
        if wish is None or not (wish.mode is None or self.node.intake.is_at_rest):
            return ()
        self._wish = None
        if wish.clear_cache:
            self.node.scheduler.drop_cache()
        return (PauseSet(wish.ticket, wish.mode is not None),)

    def _open_reader(self, weights: WeightFiles) -> WeightReader:
        return reader_of(self._plan, weights, device=self._device)

    def _is_busy(self) -> bool:
        return self.node.scheduler.num_running > 0

    def close(self) -> None:
        self._renewer.drop()
        if self._others is not None:
            self._others.close()
        self._front_ends.close()
        self._compiling.close()
        self._port.close()


def _tuner(serve: Serve) -> Tuner:
    if serve.first is None:
        return NoTuner()
    return LoadTuner(MicroBatchTuner(serve.micro_batches, serve.first))


def compiling_for(plan: Plan) -> Compiling:
    """Grammars for this model; llguidance and the tokenizer are loaded with the first."""

    def load() -> "GrammarCompiler":
        from megainfer.structured.compiler import GrammarCompiler

        ends = plan.generation.eos_token_ids
        memory = plan.config.grammar_memory
        return GrammarCompiler(plan.folder, plan.spec.vocab_size, ends, memory)

    return Compiling(load)


def scheduler_config(plan: Plan, micro_batches: int) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=plan.num_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=plan.config.max_num_seqs,
        max_num_batched_tokens=plan.config.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
        num_micro_batches=micro_batches,
        enable_prefix_cache=plan.prefix_cache,
        recurrent=plan.spec.is_recurrent,
        fair_prompt_rows=(
            FAIR_PROMPT_ROWS_ON_GPUS if plan.devices.gpus else FAIR_PROMPT_ROWS_ON_CPUS
        ),
        scored_row_cost=scored_row_cost(plan.spec, plan.precision),
    )
