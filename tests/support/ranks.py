"""Expert nodes of several ranks in the test's own process: the others are threads of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event, Thread

from megainfer.compute.selection import open_backend
from megainfer.expert_node.following import Follower
from megainfer.expert_node.node import ExpertNode
from megainfer.expert_node.other_ranks import ExpertRanks, Rank
from megainfer.expert_node.process import load_experts
from megainfer.gather import Gather
from megainfer.launch.heartbeat import Page
from megainfer.launch.plan import Plan
from megainfer.launch.rank_seats import RankSeats
from megainfer.messages.weights import OF_FOLDER
from megainfer.topology import Membership, Shard
from tests.support.local_cluster import Hub, LocalCluster

TURN_SECONDS = 0.05


@dataclass
class RankThreads:
    """The ranks of one expert node but the first. others: that one's end."""

    plan: Plan
    node: int
    ended: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self._seats = RankSeats(self.plan.rows_layout)
        self.others = ExpertRanks(self._seats.leading, self.node, self.plan.spin_seconds)
        ranks = range(1, self.plan.config.ffn_tp)
        self.errors: list[BaseException] = []
        self._threads = [Thread(target=self._run, args=(rank,), daemon=True) for rank in ranks]
        for thread in self._threads:
            thread.start()

    def _run(self, rank: int) -> None:
        try:
            model = load_experts(
                self.plan,
                self.node,
                open_backend(self.plan.expert_kernels, self.plan.precision),
                lambda done, total: None,
                rank=Rank(Shard(rank, self.plan.config.ffn_tp)),
            )
            seat = self._seats.following(rank)
            follower = Follower(self.plan, model, seat, OF_FOLDER, Page())
            while not self.ended.is_set():
                follower.turn(TURN_SECONDS)
        except BaseException as error:  # a thread's end is nobody's affair otherwise
            self.errors.append(error)
            raise

    def close(self) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.join(10)
        self.others.close()
        assert self.errors == []


class RankedCluster(LocalCluster):
    """A `LocalCluster` whose expert nodes have `ffn_tp` ranks."""

    def _expert(self, hub: Hub, node: int, m: int) -> ExpertNode:
        self.ranks: list[RankThreads] = getattr(self, "ranks", [])
        self.ranks.append(RankThreads(self.plan, node))
        others = self.ranks[-1].others
        rank = Rank(Shard(0, self.plan.config.ffn_tp), others)
        model = load_experts(self.plan, node, self._backend(), lambda done, total: None, rank=rank)
        others.await_loaded()
        return ExpertNode(model, Gather(m, self.plan.spec.first_moe_layer), hub.expert_port(node))

    def enter(
        self, membership: Membership, order: Sequence[int] | None = None, switches=None
    ) -> None:
        for node, ranks in enumerate(self.ranks):
            if node in membership.experts:
                ranks.others.enter(membership)
        super().enter(membership, order, switches)

    def close(self) -> None:
        for ranks in self.ranks:
            ranks.close()
        super().close()
