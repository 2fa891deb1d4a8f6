"""The process of an expert node's rank that follows: load its part, compute what rank 0 says."""

from collections.abc import Sequence
from time import monotonic
from typing import Never

from megainfer.checkpoint.reader import WeightReader
from megainfer.device import HOST, Device
from megainfer.errors import ProtocolError
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.moving import Mover
from megainfer.expert_node.other_ranks import Rank
from megainfer.expert_node.process import load_experts
from megainfer.expert_node.warm_up import record, warm_up
from megainfer.launch.computing import computing
from megainfer.launch.heartbeat import Page, Workload
from megainfer.launch.node_loop import MAX_SLEEP_SECONDS
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import FollowingSeat
from megainfer.launch.renewing import Renewer, reader_of
from megainfer.launch.station import Station
from megainfer.m2n.mailbox import Dispatch
from megainfer.messages.from_child import Prepared
from megainfer.messages.message import Role
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import Enter, Prepare
from megainfer.messages.weights import WeightFiles
from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.road import MESSAGE, MESSAGE_SECONDS
from megainfer.ranks.rows import FollowingRows, Order
from megainfer.topology import Placement, Shard


def run_following(
    station: Station,
    plan: Plan,
    node: int,
    seat: FollowingSeat[RowsLayout],
    placement: Placement,
    weights: WeightFiles,
) -> Never:
    """Everything that the process of this rank of expert node `node` does after the fork. It has
    nothing that its end could lose: the supervisor ends it with rank 0, and that with it."""
    rank = Rank(Shard(seat.rank, plan.config.ffn_tp))
    with computing(plan, Role.EXPERT, node, seat.rank) as backend:
        device = backend.device
        model = load_experts(plan, node, backend, _unheard, placement, weights, rank)
        warm_up(model, plan, node, device)  # what is recorded is done once before
        record(model, plan, node, _unheard)
        follower = Follower(plan, model, seat, weights, station.page, device)
        while True:
            follower.turn(MAX_SLEEP_SECONDS)


def _unheard(done: int, total: int) -> None:
    """Rank 0 tells how loading goes on: all load as much."""


class Follower:
    """A rank with its part of every expert that the node holds.

    page: where it announces until when its work should be done. device: where it computes.
    """

    def __init__(
        self,
        plan: Plan,
        model: ExpertModel,
        seat: FollowingSeat[RowsLayout],
        weights: WeightFiles,
        page: Page,
        device: Device = HOST,
    ) -> None:
        self._plan = plan
        self._device = device
        self._model = model
        self._link = seat.link
        road = seat.road(plan.spin_seconds, device, page)
        self._rows = FollowingRows(road, seat.layout, seat.rank)
        self._work = Workload(page)
        self._computed = self._seen = 0  # batches, and at the last look
        self._renewer = Renewer(weights, self._open_reader, model.renewed, self._is_busy)
        self._mover = Mover(model, lambda: self._open_reader(self._renewer.weights))
        self._rows.done()  # loading

    def turn(self, timeout: float) -> None:
        """Do what rank 0 says next, if that comes within `timeout` seconds; then tell it what has
        been prepared."""
        bound = self._renewer.sleep_bound(self._mover.sleep_bound(timeout))
        order = self._rows.wait(bound)
        if order is not None:
            self._work.begin(monotonic())
            self._obey(order)
            self._rows.done()
            self._work.rest()
        for prepared in self._news():
            self._link.send(prepared)

    def _obey(self, order: Order) -> None:
        if order.layer == MESSAGE:
            self._hear(self._link.receive(MESSAGE_SECONDS))
            return
        self._work.rows(order.rows)
        self._compute(order)

    def _compute(self, order: Order) -> None:
        hidden, local_ids, weights = self._rows.given(order.rows)
        dispatch = Dispatch(
            source=0,
            micro_batch=0,
            layer=order.layer,
            sequence=0,
            hidden=hidden,
            local_ids=local_ids,
            weights=weights,
        )
        self._model.forward(order.layer, [dispatch], [self._rows.result(order.rows)])
        self._computed += 1

    def _hear(self, message: ToChild | None) -> None:
        match message:
            case Enter(membership=membership):
                if (switch := self._renewer.take(membership.weights)) is not None:
                    switch()
                self._model.enter(membership.placement)
            case Prepare():
                self._renewer.prepare(message)
                if message.weights.version == self._renewer.weights.version:
                    self._mover.prepare(message)
                else:
                    self._mover.close()
            case _:
                raise ProtocolError(f"a rank of an expert node was told {message}")

    def _news(self) -> Sequence[Prepared]:
        return [*self._mover.news(), *self._renewer.news()]

    def _open_reader(self, weights: WeightFiles) -> WeightReader:
        return reader_of(self._plan, weights, device=self._device)

    def _is_busy(self) -> bool:
        before, self._seen = self._seen, self._computed
        return self._computed > before
