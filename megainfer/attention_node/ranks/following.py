"""The process of an attention node's rank that follows: load its part, compute what rank 0 says."""

from collections.abc import Sequence
from time import monotonic
from typing import Never

import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.attention_node.process import load_attention
from megainfer.attention_node.ranks.leading import Rank
from megainfer.attention_node.ranks.step_numbers import read_step
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.half import RankLayer
from megainfer.compute.kv_cache import KVCache
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
from megainfer.ranks.half import Work
from megainfer.ranks.layout import HalfLayout
from megainfer.ranks.road import MESSAGE, MESSAGE_SECONDS
from megainfer.topology import Shard


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
        self._link = seat.link
        self._layout = layout = seat.layout
        self._road = seat.road(plan.spin_seconds, kv.device, page)
        first, end = ModelSources(plan.spec, Shard(seat.rank, layout.ranks)).vocabulary
        self._made = layout.result(seat.rank)
        self._logits = layout.logits(seat.rank, end - first)
        self._steps: dict[int, StepBatch] = {}  # by place
        self._work = Workload(page)
        self._computed = self._seen = 0  # orders, and at the last look
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self._renewer = Renewer(weights, self._open_reader, model.renewed, self._is_busy)
        self._road.done()  # loading

    def turn(self, timeout: float) -> None:
        """Do what rank 0 says next, if that comes within `timeout` seconds; then tell it what has
        been prepared."""
        order = self._road.wait(self._renewer.sleep_bound(timeout))
        if order is not None:
            self._work.begin(monotonic())
            self._obey(order)
            self._road.done()
            self._work.rest()
        for prepared in self._renewer.news():
            self._link.send(prepared)

    def _obey(self, order: Sequence[int]) -> None:
        if order[0] == MESSAGE:
            self._hear(self._link.receive(MESSAGE_SECONDS))
            return
        work, layer, rows, place = order[:4]
        self._compute(Work(work), layer, rows, place)
        self._computed += 1

    @torch.inference_mode()
    def _compute(self, work: Work, layer: int, rows: int, place: int) -> None:
        layout, road = self._layout, self._road
        if work is Work.STEP:
            self._steps[place] = read_step(road.given(layout.step, rows), self._kv.device)
            return
        self._work.rows(rows)
        if work is Work.EMBED:
            made = self._model.half.embed(road.given(layout.token_ids, rows))
        else:
            made = self._of_rows(work, layer, road.given(layout.residual, rows), place)
        road.result(self._logits if work is Work.LOGITS else self._made, rows).copy_(made)

    def _of_rows(self, work: Work, layer: int, given: Tensor, place: int) -> Tensor:
        """What it makes of [T, D]."""
        half = self._model.half
        if work is Work.LOGITS:
            return half.logits(given, torch.arange(len(given), device=given.device))
        own = half.layers[layer]
        assert isinstance(own, RankLayer), f"a half with parts, not {own}"
        if work is Work.ATTEND:
            return own.attended(given, self._steps[place], self._kv.layer(layer))
        if work is Work.DENSE:
            return own.fed_forward(given)
        shared = own.shared(given.to(self._dtype))
        assert shared is not None, f"layer {layer} has a shared expert"
        return shared

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
        return reader_of(self._plan, weights, device=self._kv.device)

    def _is_busy(self) -> bool:
        before, self._seen = self._seen, self._computed
        return self._computed > before
