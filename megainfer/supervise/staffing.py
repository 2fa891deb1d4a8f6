"""Which processes there are to be: forked when they are missing, ended when nobody needs them."""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from megainfer.hosts.remote import RemoteNodes
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import LeadingSeat, RankSeats
from megainfer.launch.station import Station
from megainfer.messages.message import Role
from megainfer.messages.to_child import Stop
from megainfer.messages.weights import WeightFiles
from megainfer.ranks.layout import HalfLayout, RowsLayout
from megainfer.supervise.assembly import Assembly
from megainfer.supervise.child import Child, ChildMain
from megainfer.supervise.family import Family
from megainfer.supervise.roster import Node
from megainfer.topology import Placement

ServerMain = Callable[[Station, int], None]
"""What the process of an API server runs: its station, its number."""


class Staffing:
    """server: what an API server's process runs, None without one; servers: how many. remote: who
    starts nodes on other hosts, None where all are on this one."""

    def __init__(
        self,
        plan: Plan,
        family: Family,
        assembly: Assembly,
        server: ServerMain | None,
        servers: int,
        remote: RemoteNodes | None = None,
    ) -> None:
        self._plan = plan
        self._family = family
        self._assembly = assembly
        self._server_main = server
        self._remote = remote
        count = 0 if server is None else servers
        self.servers: list[Node] = [(Role.SERVER, number) for number in range(count)]
        self._not_before: dict[Node, float] = {}  # on the monotonic clock
        self._dismissed: set[int] = set()  # process ids
        self._incarnations: dict[Node, int] = {}  # the next of each

    def start(self, node: Node) -> Child:
        """Its next incarnation."""
        self._not_before.pop(node, None)
        incarnation = self._incarnations.get(node, 0)
        self._incarnations[node] = incarnation + 1
        child = self._forked(node, incarnation)
        if child.role is not Role.SERVER:
            self._assembly.forked(node, incarnation)
        return child

    def postpone(self, node: Node, seconds: float) -> None:
        """It isn't to be forked again before so many seconds have passed."""
        self._not_before[node] = monotonic() + seconds

    def missing(self) -> list[Node]:
        """Those that are to be forked now."""
        now = monotonic()
        return [
            node
            for node in (*self.servers, *self._assembly.needed)
            if self._family.find(*node) is None
            and self._not_before.get(node, 0.0) <= now
            and self.can_start(node)
        ]

    def can_start(self, node: Node) -> bool:
        """Whether the host of a node is there."""
        if self._remote is None or node[0] is Role.SERVER:
            return True
        return self._remote.can_start(*node)

    def check_hosts(self) -> None:
        """Raises NodeDied where one of a wanted node is lost for longer than a start waits."""
        if self._remote is not None:
            for role, node in self._assembly.wanted:
                self._remote.check_host(role, node)

    def dismiss_the_unneeded(self) -> None:
        """Have nodes end that nobody needs any more."""
        kept = {*self._assembly.needed, *self._assembly.members()}
        for child in self._family.nodes:
            if (child.role, child.node) not in kept:
                self.dismiss((child.role, child.node))

    def dismiss(self, node: Node) -> bool:
        """Have the process of a node end that is no member any more; whether there is one. To be
        called again until it has ended, since it may not have listened."""
        child = self._family.find(*node)
        if child is None:
            return False
        if child.pid not in self._dismissed and child.offer(Stop()):
            self._dismissed.add(child.pid)
        return True

    def ended(self, child: Child) -> bool:
        """A process has ended; whether anybody needs its node."""
        self._dismissed.discard(child.pid)
        return (child.role, child.node) in (*self.servers, *self._assembly.needed)

    def _forked(self, node: Node, incarnation: int) -> Child:
        role, index = node
        plan = self._plan
        if plan.ranks(role) == 1:
            return self._family.start(role, index, self._main_of(node), incarnation)
        attention = role is Role.ATTENTION
        seats = RankSeats[Any](plan.half_layout if attention else plan.rows_layout)
        others = self._following_halves if attention else self._following_experts
        mains = [self._main_of(node, seats.leading), *others(index, seats)]
        return self._family.start_ranks(role, index, mains, seats, incarnation)

    def _following_halves(self, node: int, seats: RankSeats[HalfLayout]) -> list[ChildMain]:
        from megainfer.attention_node.ranks.following import run_following

        plan, weights = self._plan, self._assembly.weights
        return [
            partial(run_following, plan=plan, node=node, seat=seat, weights=weights)
            for seat in seats.others
        ]

    def _following_experts(self, node: int, seats: RankSeats[RowsLayout]) -> list[ChildMain]:
        from megainfer.expert_node.following import run_following

        plan, assembly = self._plan, self._assembly
        placement, weights = assembly.to_load(node), assembly.weights
        return [
            partial(
                run_following,
                plan=plan,
                node=node,
                seat=seat,
                placement=placement,
                weights=weights,
            )
            for seat in seats.others
        ]

    def _main_of(self, node: Node, seat: LeadingSeat[Any] | None = None) -> ChildMain:
        """seat: of a node's first rank, where it has several."""
        role, index = node
        if role is Role.SERVER:
            assert self._server_main is not None
            server_main = self._server_main
            return lambda station: server_main(station, index)
        measures = self._plan.measures and self._assembly.serve is None
        placement = self._assembly.to_load(index) if role is Role.EXPERT else None
        weights = self._assembly.weights
        if self._remote is not None:
            return self._remote.main_of(role, index, measures, placement, weights)
        return node_main(self._plan, role, index, measures, placement, weights, seat)


def node_main(
    plan: Plan,
    role: Role,
    node: int,
    measures: bool,
    placement: Placement | None,
    weights: WeightFiles,
    seat: LeadingSeat[Any] | None = None,
) -> ChildMain:
    """What the process of a node runs. measures: whether the choice of m waits for what its stages
    take. placement: by which an expert node loads its experts, the plan's where there is none.
    seat: of a node's first rank, where it has several."""
    # Both roles' code is imported before the fork, so that each node starts with it in memory.
    from megainfer.attention_node.process import run_attention
    from megainfer.colocated.process import run_colocated
    from megainfer.expert_node.process import run_expert

    if plan.config.colocated:
        return partial(run_colocated, plan=plan, weights=weights)
    if role is Role.ATTENTION:
        return partial(
            run_attention, plan=plan, node=node, measures=measures, weights=weights, seat=seat
        )
    return partial(
        run_expert,
        plan=plan,
        node=node,
        measures=measures,
        placement=placement or plan.placement,
        weights=weights,
        seat=seat,
    )
