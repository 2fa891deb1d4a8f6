"""The process of an attention node's rank that follows: load its part, compute what rank 0 says."""

from collections.abc import Sequence
from time import monotonic
from typing import Never

import torch

from megainfer.attention_node.model import AttentionModel
from megainfer.attention_node.process import load_attention
from megainfer.attention_node.ranks.leading import Rank
from megainfer.attention_node.ranks.step_numbers import read_step
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.kv_cache import KVCache
from megainfer.device import HOST
from megainfer.errors import ProtocolError
from megainfer.launch.computing import computing
from megainfer.launch.heartbeat import Page, Workload
from megainfer.launch.node_loop import MAX_SLEEP_SECONDS
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import FollowingSeat
from megainfer.launch.renewing import Renewer, reader_of
from megainfer.launch.station import Station
from megainfer.messages.message import Role
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import Enter, Prepare
from megainfer.messages.weights import WeightFiles
from megainfer.models.sources import ModelSources
from megainfer.ranks.half import SharedHalf, Work
from megainfer.ranks.layout import HalfLayout
from megainfer.ranks.orders import MESSAGE, FollowedOrders
from megainfer.topology import Shard

MESSAGE_SECONDS = 1.0
"""A message is there before the order that tells of it."""


def run_following(
    station: Station, plan: Plan, node: int, seat: FollowingSeat[HalfLayout], weights: WeightFiles
) -> Never:
    """Everything that the process of this rank of attention node `node` does after the fork. The
    supervisor ends it with rank 0, and that with it."""
    rank = Rank(Shard(seat.rank, plan.config.attn_tp))
    with computing(plan, Role.ATTENTION, node, seat.rank) as backend:
        model, kv = load_attention(plan, backend, _unheard, weights, rank)
        follower = HalfFollower(plan, model, kv, seat, weights, station.page)
        while True:
            follower.turn(MAX_SLEEP_SECONDS)


def _unheard(done: int, total: int) -> None:
    """Rank 0 tells how loading goes on: all load about as much."""


class HalfFollower:
    """A rank with its part of the half, and of what the cache keeps.

    page: where it announces until when its work should be done.
    """

    def __init__(
        self,
        plan: Plan,
        model: AttentionModel,
        kv: KVCache,
        seat: FollowingSeat[HalfLayout],
        weights: WeightFiles,
        page: Page,
    ) -> None:
        self._plan, self._model, self._kv = plan, model, kv
        self._link, shared = seat.link, seat.shared
        ranks = shared.layout.ranks
        self._orders = FollowedOrders(shared.memory, ranks, seat.rank, plan.spin_seconds)
        self._shared = SharedHalf(shared)
        first, end = ModelSources(plan.spec, Shard(seat.rank, ranks)).vocabulary
        self._result = self._shared.result(seat.rank)
        self._logits = self._shared.logits(seat.rank, end - first)
        self._steps: dict[int, StepBatch] = {}  # by place
        self._work = Workload(page)
        self._computed = self._seen = 0  # orders, and at the last look
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self._renewer = Renewer(weights, self._open_reader, model.renewed, self._is_busy)
        self._orders.done()  # loading

    def turn(self, timeout: float) -> None:
        """Do what rank 0 says next, if that comes within `timeout` seconds; then tell it what has
        been prepared."""
        order = self._orders.wait(self._renewer.sleep_bound(timeout))
        if order is not None:
            self._work.begin(monotonic())
            self._obey(order)
            self._orders.done()
            self._work.rest()
        for prepared in self._renewer.news():
            self._link.send(prepared)

    def _obey(self, order: Sequence[int]) -> None:
        if order[0] == MESSAGE:
            self._hear(self._link.receive(MESSAGE_SECONDS))
            return
        work, layer, rows, place = order[:4]
        self._work.rows(rows)
        self._compute(Work(work), layer, rows, place)
        self._computed += 1

    @torch.inference_mode()
    def _compute(self, work: Work, layer: int, rows: int, place: int) -> None:
        half, given, result = self._model.half, self._shared.rows[:rows], self._result[:rows]
        match work:
            case Work.STEP:
                self._steps[place] = read_step(self._shared.step)
            case Work.EMBED:
                result.copy_(half.embed(self._shared.token_ids[:rows]))
            case Work.ATTEND:
                x = given.clone()
                half.layers[layer].attend(x, self._steps[place], self._kv.layer(layer))
                torch.sub(x, given, out=result)
            case Work.DENSE:
                x = given.clone()
                half.layers[layer].feed_forward(x, self._steps[place])
                torch.sub(x, given, out=result)
            case Work.SHARED:
                shared = half.layers[layer].shared(given.to(self._dtype))
                assert shared is not None, f"layer {layer} has a shared expert"
                result.copy_(shared)
            case Work.LOGITS:
                self._logits[:rows] = half.logits(given.clone(), torch.arange(rows))

    def _hear(self, message: ToChild | None) -> None:
        match message:
            case Enter(membership=membership):
                if (switch := self._renewer.take(membership.weights)) is not None:
                    switch()
            case Prepare():
                self._renewer.prepare(message)
            case _:
                raise ProtocolError(f"a rank of an attention node was told {message}")

    def _open_reader(self, weights: WeightFiles) -> WeightReader:
        return reader_of(self._plan, weights, device=HOST)

    def _is_busy(self) -> bool:
        before, self._seen = self._seen, self._computed
        return self._computed > before
