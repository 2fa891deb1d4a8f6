"""The processes of one node: what each of its ranks runs, and forking them together."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from megainfer.compute.selection import IMPLEMENTATIONS
from megainfer.launch.control import ChildLink, ParentLink, link_pair
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import Door, FollowingSeat, LeadingSeat, RankSeats
from megainfer.launch.station import NodeTask
from megainfer.m2n.roads import ROADS
from megainfer.messages.message import Role
from megainfer.ranks.shared import Shared
from megainfer.supervise.child import Child, ChildMain, Closable, fork_child, name_of
from megainfer.topology import CoreAssignment

if TYPE_CHECKING:  # torch, which who only forks nodes of one rank doesn't need
    from megainfer.m2n.dist.listening import Address
    from megainfer.ranks.dist.meeting import Terms

KILL_SECONDS = 10.0
StandIn = Callable[["Address", ParentLink], ChildMain]
"""What stands in for a rank of another host, by where rank 0 listens, and its link to that."""
NOWHERE: Mapping[int, StandIn] = MappingProxyType({})


def fork_node(
    plan: Plan,
    task: NodeTask,
    cores: Callable[[int], CoreAssignment | None],
    close: Sequence[Closable],
    incarnation: int,
    elsewhere: Mapping[int, StandIn] = NOWHERE,
) -> Child:
    """All processes of a node of this host, one a rank; the first of them.

    cores: of a rank, None: where it likes. close: what none of them may hold. elsewhere: for the
    ranks of other hosts, who stands in for them here.
    """
    ranks = plan.ranks(task.role)
    if ranks == 1:
        main = main_of(plan, task, None)
        return fork_ranks(task.role, task.node, [(main, ())], cores, close, incarnation)
    door = _door(plan, task, incarnation, elsewhere)
    seats = RankSeats[Any](_layout(plan, task.role), door)
    try:
        mains = [main_of(plan, task, seats.leading)]
        for seat in seats.others:
            if door is not None and seat.rank in elsewhere:
                mains.append(elsewhere[seat.rank](door.listener.address, seat.link))
            else:
                mains.append(_following(plan, task, seat))
        own = [(main, seats.not_of(rank)) for rank, main in enumerate(mains)]
        return fork_ranks(task.role, task.node, own, cores, close, incarnation)
    finally:
        seats.close()


def fork_rank(
    plan: Plan,
    task: NodeTask,
    rank: int,
    leader: "tuple[str, int]",
    cores: CoreAssignment | None,
    close: Sequence[Closable],
    incarnation: int,
) -> tuple[Child, ChildLink]:
    """One rank of a node whose first is on another host and listens there, at `leader`; and what
    rank 0 has of its link in the rank's own host."""
    from megainfer.m2n.dist.listening import Address

    ours, theirs = link_pair()
    terms = _terms(plan, task, incarnation)
    shared = Shared.create(_layout(plan, task.role))  # with nobody: for what rank 0 tells
    seat: FollowingSeat[Any] = FollowingSeat(shared, rank, theirs, (terms, Address(*leader)))
    try:
        main = _following(plan, task, seat)
        held = (*close, ours)
        return fork_child(task.role, task.node, main, cores, held, incarnation, rank), ours
    finally:
        theirs.close()
        shared.close()


def _layout(plan: Plan, role: Role) -> Any:
    return plan.half_layout if role is Role.ATTENTION else plan.rows_layout


def _terms(plan: Plan, task: NodeTask, incarnation: int) -> "Terms":
    from megainfer.ranks.dist.line import patience_for
    from megainfer.ranks.dist.meeting import Terms

    node, host = name_of(task.role, task.node), plan.config.m2n_host
    patience = patience_for(task.lease)
    return Terms(node, incarnation, host, plan.m2n_key, plan.m2n_tls, patience)


def _door(
    plan: Plan, task: NodeTask, incarnation: int, elsewhere: Mapping[int, StandIn]
) -> Door | None:
    if not elsewhere:
        return None
    from megainfer.m2n.dist.listening import TcpListener

    listener = TcpListener.create(plan.config.m2n_host)
    return Door(_terms(plan, task, incarnation), tuple(sorted(elsewhere)), listener)


def fork_ranks(
    role: Role,
    node: int,
    ranks: Sequence[tuple[ChildMain, Sequence[Closable]]],
    cores: Callable[[int], CoreAssignment | None],
    close: Sequence[Closable],
    incarnation: int,
) -> Child:
    """ranks: what each runs, and what of its node's it must not hold; others as `fork_node`."""
    forked: list[Child] = []
    try:
        for rank, (main, foreign) in enumerate(ranks):
            held = (*close, *foreign, *forked)
            forked.append(fork_child(role, node, main, cores(rank), held, incarnation, rank))
    except OSError:
        for child in forked:
            child.kill()
            child.reap(KILL_SECONDS)
            child.forget()
        raise
    first, *others = forked
    first.others = tuple(others)
    return first


def main_of(plan: Plan, task: NodeTask, seat: LeadingSeat[Any] | None) -> ChildMain:
    """What the process of a node runs; seat: of its first rank, where it has several."""
    # Both roles' code is imported before the fork, so that each node starts with it in memory.
    from megainfer.attention_node.process import run_attention
    from megainfer.colocated.process import run_colocated
    from megainfer.expert_node.process import run_expert

    _import_for_hosts(plan)
    if plan.config.colocated:
        return partial(run_colocated, plan=plan, weights=task.weights)
    if task.role is Role.ATTENTION:
        return partial(
            run_attention,
            plan=plan,
            node=task.node,
            measures=task.measures,
            weights=task.weights,
            seat=seat,
        )
    return partial(
        run_expert,
        plan=plan,
        node=task.node,
        measures=task.measures,
        placement=task.placement or plan.placement,
        weights=task.weights,
        seat=seat,
        givers=task.givers,
    )


def _import_for_hosts(plan: Plan) -> None:
    """What a node computes with and reaches others by, for the same reason: one that is started
    again is back sooner by as long as this takes. What is of GPUs waits for the process that has
    one."""
    if plan.devices.gpus:
        return
    for kernels in (plan.kernels, plan.expert_kernels):
        import_module(IMPLEMENTATIONS[kernels].module)
    if not plan.config.colocated:
        road = plan.road
        for kind in (road.kind, road.near) if road.kind == "mixed" else (road.kind,):
            import_module(ROADS[kind])


def _following(plan: Plan, task: NodeTask, seat: FollowingSeat[Any]) -> ChildMain:
    """Of any rank but the first."""
    from megainfer.attention_node.ranks import following as halves
    from megainfer.expert_node import following as experts

    node, weights = task.node, task.weights
    _import_for_hosts(plan)
    if task.role is Role.ATTENTION:
        return partial(halves.run_following, plan=plan, node=node, seat=seat, weights=weights)
    return partial(
        experts.run_following,
        plan=plan,
        node=node,
        seat=seat,
        placement=task.placement or plan.placement,
        weights=weights,
    )
