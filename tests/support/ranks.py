"""Nodes of several ranks in the test's own process: the others are threads of it."""

from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any, Protocol

import torch

from megainfer.attention_node.node import AttentionNode
from megainfer.attention_node.parts import NodeParts, NodeSettings
from megainfer.attention_node.process import compiling_for, load_attention, scheduler_config
from megainfer.attention_node.ranks import leading as half
from megainfer.attention_node.ranks.following import HalfFollower
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.selection import open_backend
from megainfer.expert_node.following import Follower
from megainfer.expert_node.node import ExpertNode
from megainfer.expert_node.other_ranks import ExpertRanks, Rank
from megainfer.expert_node.process import load_experts
from megainfer.gather import Gather
from megainfer.instruments.stage_clock import StageClock
from megainfer.launch.heartbeat import Page
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import FollowingSeat, RankSeats
from megainfer.messages.weights import OF_FOLDER
from megainfer.topology import Membership, Shard
from tests.support.local_cluster import Hub, LocalCluster

TURN_SECONDS = 0.05


class Turning(Protocol):
    def turn(self, timeout: float) -> None: ...


class RankThreads:
    """The ranks of one node but the first; make: what one of them turns, by its seat."""

    def __init__(
        self, seats: RankSeats[Any], make: Callable[[FollowingSeat[Any]], Turning]
    ) -> None:
        self._make = make
        self._ended = Event()
        self._errors: list[BaseException] = []
        self._threads = [
            Thread(target=self._run, args=(seat,), daemon=True) for seat in seats.others
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, seat: FollowingSeat[Any]) -> None:
        try:
            follower = self._make(seat)
            while not self._ended.is_set():
                follower.turn(TURN_SECONDS)
        except BaseException as error:  # a thread's end is nobody's affair otherwise
            self._errors.append(error)
            raise

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(10)
        assert self._errors == []


def unheard(done: int, total: int) -> None:
    """Nobody waits for weights of so few bytes."""


def expert_follower(plan: Plan, node: int, seat: FollowingSeat[Any]) -> Follower:
    backend = open_backend(plan.expert_kernels, plan.precision)
    rank = Rank(Shard(seat.rank, plan.config.ffn_tp))
    model = load_experts(plan, node, backend, unheard, rank=rank)
    return Follower(plan, model, seat, OF_FOLDER, Page())


def half_follower(plan: Plan, seat: FollowingSeat[Any]) -> HalfFollower:
    backend = open_backend(plan.kernels, plan.precision)
    rank = half.Rank(Shard(seat.rank, plan.config.attn_tp))
    model, kv = load_attention(plan, backend, unheard, rank=rank)
    return HalfFollower(plan, model, kv, seat, OF_FOLDER, Page())


class RankedCluster(LocalCluster):
    """A `LocalCluster` whose nodes have `attn_tp` and `ffn_tp` ranks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.threads: list[RankThreads] = []
        self.halves: list[half.HalfRanks] = []  # of attention nodes, where they have several
        self.parts: list[ExpertRanks] = []  # of expert nodes
        super().__init__(*args, **options)

    def _attention(self, hub: Hub, node: int, m: int) -> AttentionNode:
        if self.plan.config.attn_tp == 1:
            return super()._attention(hub, node, m)
        seats = RankSeats(self.plan.half_layout)
        self.threads.append(RankThreads(seats, lambda seat: half_follower(self.plan, seat)))
        others = half.HalfRanks(seats.leading, node, self.plan.spec, 0.0)
        self.halves.append(others)
        backend = self._backend()
        rank = half.Rank(Shard(0, self.plan.config.attn_tp), others)
        model, kv = load_attention(self.plan, backend, unheard, rank=rank)
        others.await_loaded()
        parts = NodeParts(
            model=model,
            kv=kv,
            scheduler=Scheduler(scheduler_config(self.plan, m)),
            port=hub.attention_port(node),
            emit=self._hear,
            device=backend.device,
            compiling=compiling_for(self.plan),
        )
        return AttentionNode(parts, NodeSettings(node, self._reply_timeout))

    def _expert(self, hub: Hub, node: int, m: int) -> ExpertNode:
        seats = RankSeats(self.plan.rows_layout)
        self.threads.append(RankThreads(seats, lambda seat: expert_follower(self.plan, node, seat)))
        others = ExpertRanks(seats.leading, node, 0.0)
        self.parts.append(others)
        rank = Rank(Shard(0, self.plan.config.ffn_tp), others)
        model = load_experts(self.plan, node, self._backend(), unheard, rank=rank)
        others.await_loaded()
        return ExpertNode(model, Gather(m, self.plan.spec.first_moe_layer), hub.expert_port(node))

    def enter(
        self, membership: Membership, order: Sequence[int] | None = None, switches: Any = None
    ) -> None:
        for others in self.halves:
            others.links.enter(membership)
        for node in membership.experts:
            self.parts[node].links.enter(membership)
        super().enter(membership, order, switches)

    def close(self) -> None:
        for threads in self.threads:
            threads.close()
        for others in (*self.halves, *self.parts):
            others.links.close()
        super().close()


def half_outputs(cluster: LocalCluster, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Embedding, what each layer's experts see and its shared expert gives, logits."""
    node = cluster.attention[0]
    model, kv, clock = node._model, node._parts.kv, StageClock().of(0)
    chunks = [
        ChunkInput(prompt, 0, list(range(8 * i, 8 * i + 8)), True, i)
        for i, prompt in enumerate(prompts)
    ]
    batch = build_batch(chunks)
    x = model.embed(batch)
    found, layer = [x.clone()], 0
    while (point := model.advance(x, layer, batch, kv, clock)) is not None:
        shared = model.shared(point.layer, point.hidden)
        found += [point.hidden.to(torch.float32)] + ([] if shared is None else [shared.float()])
        layer = point.layer + 1
    return [*found, model.logits(x, batch.sample_rows)]
