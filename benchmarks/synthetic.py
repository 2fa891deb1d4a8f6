"""An instance whose stages take set times: all of the pipeline is real, but no model is.

Attention and expert nodes with scheduler, ping-pong, gather, node loop and `shm` M2N run in forked
processes, as an instance's do. Only the two models are replaced, by sleeping to a deadline, so
that more processes than cores can be "computing" at once.
"""

import ctypes
import multiprocessing
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import torch
from choosing import Chooser, Choosing, ChosenExperts, sleep_until
from torch import Tensor

from megainfer.attention_node.model import MoEPoint
from megainfer.attention_node.node import AttentionNode
from megainfer.attention_node.parts import NodeParts, NodeSettings
from megainfer.attention_node.scheduling.config import SchedulerConfig
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.compute.batch import StepBatch
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.tokens import TokenKernels
from megainfer.config import BLOCK_SIZE
from megainfer.errors import NodeDied, ProtocolError
from megainfer.expert_node.node import ExpertNode
from megainfer.gather import Gather
from megainfer.instruments.stage_clock import MicroBatchClock, Span
from megainfer.launch.heartbeat import Workload
from megainfer.launch.node_loop import Unit, run_until_stopped
from megainfer.launch.station import Station
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, Part
from megainfer.m2n.roads import PortOptions, Road, Seat, open_attention_port, open_expert_port
from megainfer.messages.from_child import Entered, Fatal, Ready, Spans, Stats
from megainfer.messages.message import Message, Role
from megainfer.messages.requests import FromNode, Submit
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import Enter, GetSpans, GetStats, Stop
from megainfer.simulator import Cost
from megainfer.supervise.child import Child, fork_child
from megainfer.topology import (
    Membership,
    Placement,
    assign_cores,
    contiguous_placement,
    first_membership,
)

HIDDEN_SIZE = 256
VOCABULARY = 8
MAX_TOKENS = 4096  # of a sequence
TIMEOUT_SECONDS = 30.0
PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class Stages:
    """What to run. rows: of one attention node's micro-batch. attention: seconds of a layer.
    spin: seconds for which a node looks at its slots before it sleeps.

    standing: every step begins when all micro-batches have ended the last one, so that each is the
    paper's T_total; else steps follow each other without a break. choosing: how tokens choose
    experts, whose times are then what is set there; None: every token one on every node.
    """

    num_attention: int
    num_expert: int
    micro_batches: int
    layers: int
    rows: int
    attention: float
    expert: Cost
    spin: float = 0.0
    standing: bool = False
    trace: int = 0
    choosing: Choosing | None = None

    def placement(self) -> Placement:
        nodes = self.num_expert
        if self.choosing is not None:
            return self.choosing.placement(nodes, self.layers)
        return contiguous_placement(nodes, nodes, range(self.layers))

    def membership(self) -> Membership:
        return first_membership(self.num_attention, self.placement())

    def geometry(self) -> Geometry:
        return Geometry(
            self.num_attention,
            self.num_expert,
            self.micro_batches,
            self.rows,
            HIDDEN_SIZE,
            1 if self.choosing is None else self.choosing.top_k,
            "float32",
        )


# --- in place of models --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spec:
    layers: range
    vocab_size: int = VOCABULARY


class SleepingAttention:
    """A `StepModel`; every layer has experts."""

    record = None

    def __init__(self, stages: Stages) -> None:
        self.spec = _Spec(range(stages.layers))
        self._stages = stages
        self._parts = {rows: self._parts_of(rows) for rows in range(1, stages.rows + 1)}
        choosing = stages.choosing
        self._chooser: Chooser | None = None
        if choosing is not None:
            self._chooser = Chooser(choosing, stages.layers, stages.placement())

    def place(self, placement: Placement) -> None:
        if self._chooser is not None:
            self._chooser.place(placement)

    def embed(self, batch: StepBatch) -> Tensor:
        return torch.zeros(batch.num_tokens, HIDDEN_SIZE)

    def advance(
        self, x: Tensor, layer: int, batch: StepBatch, kv: object, clock: MicroBatchClock
    ) -> MoEPoint | None:
        if layer == self._stages.layers:
            return None
        deadline = monotonic() + self._stages.attention
        with clock.span("attention", layer):
            parts = self._parts[batch.num_tokens]
            if self._chooser is not None:
                parts = self._chooser.parts(layer, batch.num_tokens)
            sleep_until(deadline)
        return MoEPoint(layer, x, parts)

    def shared(self, layer: int, hidden: Tensor) -> None:
        return None

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros(rows.numel(), VOCABULARY)

    @property
    def tokens(self) -> TokenKernels:
        return kernels

    def _parts_of(self, rows: int) -> tuple[Part, ...]:
        ids = torch.zeros(rows, 1, dtype=torch.int32)
        part = Part(torch.arange(rows), ids, torch.ones(rows, 1))
        return (part,) * self._stages.num_expert


class SleepingExperts:
    """As `ExpertModel`."""

    def __init__(self, cost: Cost, layers: int) -> None:
        self._cost = cost
        self.held: dict[int, tuple[int, ...]] = dict.fromkeys(range(layers), ())

    def enter(self, placement: Placement) -> None:
        """It holds nothing."""

    def count(self) -> None:
        """Nothing is counted."""

    def forward(self, layer: int, dispatches: Sequence[Dispatch], outs: Sequence[Tensor]) -> None:
        rows = sum(dispatch.num_rows for dispatch in dispatches)
        deadline = monotonic() + self._cost.of(rows)
        for dispatch, out in zip(dispatches, outs, strict=True):
            out.copy_(dispatch.hidden)
        sleep_until(deadline)

    def counters(self) -> dict[str, Any]:
        return {}


# --- processes -----------------------------------------------------------------------------------


class AttentionUnit:
    """An attention node that always has `rows` sequences in each micro-batch to generate for."""

    def __init__(self, stages: Stages, node: int, port: AttentionPort) -> None:
        self._stages = stages
        self._port = port
        self._name = f"attention node {node}"
        trace = 8 * stages.micro_batches * (stages.layers + 2) if stages.standing else stages.trace
        scheduler = Scheduler(_scheduler_config(stages))
        model: Any = SleepingAttention(stages)
        no_kv: Any = None
        parts = NodeParts(model, no_kv, scheduler, port, self._hear)
        self.node = AttentionNode(parts, NodeSettings(node, trace=trace))
        self._standing_seconds: list[float] = []
        self._requests = 0

    def run_once(self) -> bool:
        worked = self.node.run_once()
        if self._stages.standing and self._requests and not list(self.node.scheduler.live):
            self._standing_seconds.append(_pass_seconds(self.node.clock.take_spans()))
            self._submit_all()
        return worked

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        self._port.wait(timeout, fds)

    def enter(self, membership: Membership) -> None:
        self.node.enter(membership)
        if not self._requests:  # expert nodes expect nobody before
            self._submit_all()

    def hear(self, message: ToChild) -> None:
        raise ProtocolError(f"an attention node was told {message}")

    def news(self) -> Sequence[Message]:
        return ()

    def counters(self) -> dict[str, Any]:
        own = {**self.node.counters(), "standing_seconds": list(self._standing_seconds)}
        return {self._name: own}

    def keep_spans(self, count: int) -> None:
        self.node.clock.keep_latest(count)

    def take_spans(self) -> dict[str, list[Span]]:
        return {self._name: self.node.clock.take_spans()}

    def close(self) -> None:
        self._port.close()

    def _submit_all(self) -> None:
        for _ in range(self._stages.rows * self._stages.micro_batches):
            self._requests += 1
            tokens = 1 if self._stages.standing else MAX_TOKENS - 1
            self.node.hear(_submit(str(self._requests), tokens))

    def _hear(self, message: FromNode) -> None:
        """Nobody reads the tokens."""


class ExpertUnit:
    def __init__(self, stages: Stages, node: int, port: ExpertPort) -> None:
        self._port = port
        self._name = f"expert node {node}"
        gather = Gather(stages.micro_batches, 0)
        model: Any = (
            SleepingExperts(stages.expert, stages.layers)
            if stages.choosing is None
            else ChosenExperts(stages.choosing, stages.layers, node)
        )
        self.node = ExpertNode(model, gather, port, stages.trace)

    def run_once(self) -> bool:
        return self.node.run_once()

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        self._port.wait(self.node.sleep_bound(timeout), fds)

    def enter(self, membership: Membership) -> None:
        self.node.enter(membership)

    def hear(self, message: ToChild) -> None:
        raise ProtocolError(f"an expert node was told {message}")

    def news(self) -> Sequence[Message]:
        return ()

    def counters(self) -> dict[str, Any]:
        return {self._name: self.node.counters()}

    def keep_spans(self, count: int) -> None:
        self.node.clock.keep_latest(count)

    def take_spans(self) -> dict[str, list[Span]]:
        return {self._name: self.node.clock.take_spans()}

    def close(self) -> None:
        self._port.close()


def _pass_seconds(spans: Sequence[Span]) -> float:
    """From the first attention half to the last combine."""
    started = min(span.start for span in spans if span.kind == "attention")
    return max(span.end for span in spans if span.kind == "combine") - started


def _scheduler_config(stages: Stages) -> SchedulerConfig:
    sequences = stages.rows * stages.micro_batches
    return SchedulerConfig(
        num_blocks=sequences * (MAX_TOKENS // BLOCK_SIZE + 1),
        block_size=BLOCK_SIZE,
        max_num_seqs=sequences,
        max_num_batched_tokens=stages.rows,
        max_model_len=MAX_TOKENS,
        num_micro_batches=stages.micro_batches,
        enable_prefix_cache=False,
    )


def _submit(request_id: str, max_tokens: int) -> Submit:
    return Submit(
        request_id=request_id,
        prompt=[0],
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        seed=0,
        max_tokens=max_tokens,
        stop_token_ids=[],
    )


def _run_attention(station: Station, stages: Stages, token: str, node: int) -> None:
    port = open_attention_port(*_way(stages, token, node), TIMEOUT_SECONDS)
    _serve(station, AttentionUnit(stages, node, port))


def _run_expert(station: Station, stages: Stages, token: str, node: int) -> None:
    port = open_expert_port(*_way(stages, token, node), TIMEOUT_SECONDS)
    _serve(station, ExpertUnit(stages, node, port))


def _way(stages: Stages, token: str, node: int) -> tuple[Road, Seat]:
    return Road("shm", token, PortOptions(stages.spin)), Seat(stages.geometry(), node, 0)


def _serve(station: Station, unit: Unit) -> None:
    torch.set_num_threads(1)
    # The kernel's default lets a sleep last 50 us longer than asked for.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    station.link.send(Ready())
    run_until_stopped(station.link, unit, Workload(station.page))


def without_threads(main: Callable[[], None]) -> int:
    """The exit status of `main` in a process that may fork: numpy, loaded with torch, has started
    a thread in this one."""
    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join()
    return process.exitcode or 0


class SyntheticCluster:
    """The processes, running from the end of the constructor until `close`.

    To be made in a process without threads, which it forks.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self._children: list[Child] = []
        token = f"bench-{secrets.token_hex(8)}"
        count = stages.num_attention + stages.num_expert
        cores = assign_cores(count, tuple(sorted(os.sched_getaffinity(0))))
        for process in range(count):
            node = process - stages.num_attention
            role, main, index = (
                (Role.ATTENTION, _run_attention, process)
                if node < 0
                else (Role.EXPERT, _run_expert, node)
            )
            body = partial(main, stages=stages, token=token, node=index)
            links = [child.link for child in self._children]
            self._children.append(fork_child(role, index, body, cores[process], links))
        self._expect_all(Ready)
        self.membership = stages.membership()
        self.enter(self.membership)

    def enter(self, membership: Membership) -> None:
        """Returns when all take part in it."""
        self.membership = membership
        self._tell_all(Enter(membership))
        self._expect_all(Entered)

    def counters(self) -> dict[str, dict[str, Any]]:
        self._tell_all(GetStats(ticket=0))
        answers = self._expect_all(Stats)
        return {name: own for answer in answers for name, own in answer.counters.items()}

    def take_spans(self) -> dict[str, list[Span]]:
        self._tell_all(GetSpans(ticket=0))
        spans: dict[str, list[Span]] = {}
        for child in self._children:
            last = False
            while not last:
                piece = self._expect(child, Spans)
                spans.setdefault(piece.node, []).extend(piece.spans)
                last = piece.last
        return spans

    def close(self) -> None:
        self._tell_all(Stop())
        for child in self._children:
            if not child.reap(TIMEOUT_SECONDS):
                child.kill()
                child.reap(TIMEOUT_SECONDS)
            child.link.close()

    def __enter__(self) -> "SyntheticCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell_all(self, message: Message) -> None:
        for child in self._children:
            child.send(message)

    def _expect_all(self, kind: Any) -> list[Any]:
        return [self._expect(child, kind) for child in self._children]

    def _expect(self, child: Child, kind: Any) -> Any:
        try:
            message = child.link.receive(TIMEOUT_SECONDS)
        except NodeDied as error:
            raise NodeDied(f"{child.name}: {error}") from error
        if not isinstance(message, kind):
            what = message.message if isinstance(message, Fatal) else f"{message} instead of {kind}"
            raise NodeDied(f"{child.name}: {what}")
        return message
