"""Nodes of several ranks in the test's own process: the others are threads of it, or were forked
from it."""

from collections.abc import Callable, Sequence
from functools import partial
from threading import Event, Thread
from typing import Any, Protocol

import torch

from megainfer.attention_node.model import StepModel
from megainfer.attention_node.node import AttentionNode
from megainfer.attention_node.parts import NodeParts, NodeSettings
from megainfer.attention_node.process import compiling_for, load_attention, scheduler_config
from megainfer.attention_node.ranks import leading as half
from megainfer.attention_node.ranks.following import HalfFollower
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.compute.backend import Backend
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.kv_cache import KVCache
from megainfer.expert_node.experts import ExpertModel
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
from tests.support.m2n_cluster import fork

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


class RankForks:
    """As `RankThreads`, in processes, which are killed at the end."""

    def __init__(
        self, seats: RankSeats[Any], make: Callable[[FollowingSeat[Any]], Turning]
    ) -> None:
        self._processes = [fork(_turn, make, seat) for seat in seats.others]

    def close(self) -> None:
        codes = [process.exitcode for process in self._processes]
        for process in self._processes:
            process.kill()
            process.join(10)
        assert codes == [None] * len(codes), f"ranks ended by themselves: {codes}"


def _turn(make: Callable[[FollowingSeat[Any]], Turning], seat: FollowingSeat[Any]) -> None:
    follower = make(seat)
    while True:
        follower.turn(TURN_SECONDS)


def expert_follower(
    plan: Plan,
    load: Callable[[Backend, Rank], ExpertModel],
    backend: Backend,
    seat: FollowingSeat[Any],
) -> Follower:
    model = load(backend, Rank(Shard(seat.rank, plan.config.ffn_tp)))
    return Follower(plan, model, seat, OF_FOLDER, Page(), backend.device)


def half_follower(plan: Plan, backend: Backend, seat: FollowingSeat[Any]) -> HalfFollower:
    rank = half.Rank(Shard(seat.rank, plan.config.attn_tp))
    model, kv = load_attention(plan, backend, unheard, rank=rank)
    return HalfFollower(plan, model, kv, seat, OF_FOLDER, Page())


class RankedCluster(LocalCluster):
    """A `LocalCluster` whose nodes have `attn_tp` and `ffn_tp` ranks."""

    apart: type[RankThreads | RankForks] = RankThreads

    def __init__(self, *args: Any, **options: Any) -> None:
        self.threads: list[RankThreads | RankForks] = []
        self.halves: list[half.HalfRanks] = []  # of attention nodes, where they have several
        self.parts: list[ExpertRanks] = []  # of expert nodes
        super().__init__(*args, **options)

    def _attention(self, hub: Hub, node: int, m: int) -> AttentionNode:
        if self.plan.config.attn_tp == 1:
            return super()._attention(hub, node, m)
        seats, backend = RankSeats(self.plan.half_layout), self._backend()
        new = partial(half_follower, self.plan)
        self.threads.append(self.apart(seats, lambda seat: new(self._backend(), seat)))
        others = half.HalfRanks(seats.leading, node, self.plan.spec, 0.0, backend.device)
        self.halves.append(others)
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
        seats, backend = RankSeats(self.plan.rows_layout), self._backend()
        new = partial(expert_follower, self.plan, partial(self._part, node))
        self.threads.append(self.apart(seats, lambda seat: new(self._backend(), seat)))
        others = ExpertRanks(seats.leading, node, 0.0, backend.device)
        self.parts.append(others)
        rank = Rank(Shard(0, self.plan.config.ffn_tp), others)
        model = self._part(node, backend, rank)
        others.await_loaded()
        return ExpertNode(model, Gather(m, self.plan.spec.first_moe_layer), hub.expert_port(node))

    def _part(self, node: int, backend: Backend, rank: Rank) -> ExpertModel:
        """What this rank of an expert node computes with."""
        return load_experts(self.plan, node, backend, unheard, rank=rank)

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
            others.close()
        super().close()


def half_outputs(cluster: LocalCluster, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Of its first attention node."""
    node = cluster.attention[0]
    return outputs_of(node._model, node._parts.kv, prompts)


def outputs_of(model: StepModel, kv: KVCache, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Embedding, what each layer's experts see and its shared expert gives, logits."""
    clock = StageClock().of(0)
    chunks = [
        ChunkInput(prompt, 0, list(range(8 * i, 8 * i + 8)), True, i)
        for i, prompt in enumerate(prompts)
    ]
    batch = build_batch(chunks, kv.device)
    x = model.embed(batch)
    found, layer = [x.clone()], 0
    while (point := model.advance(x, layer, batch, kv, clock)) is not None:
        shared = model.shared(point.layer, point.hidden)
        found += [point.hidden.to(torch.float32)] + ([] if shared is None else [shared.float()])
        layer = point.layer + 1
    return [*found, model.logits(x, batch.sample_rows)]
