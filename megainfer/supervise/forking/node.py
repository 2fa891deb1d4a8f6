"""The processes of one node: what each of its ranks runs, and forking them together."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from megainfer.compute.selection import IMPLEMENTATIONS
from megainfer.launch.plan import Plan
from megainfer.launch.ranks.seats import LeadingSeat, RankSeats
from megainfer.launch.station import NodeTask
from megainfer.m2n.roads import ROADS
from megainfer.messages.message import Role
from megainfer.supervise.child import Child, ChildMain, Closable, fork_child
from megainfer.topology import CoreAssignment

KILL_SECONDS = 10.0


def fork_node(
    plan: Plan,
    task: NodeTask,
    cores: Callable[[int], CoreAssignment | None],
    close: Sequence[Closable],
    incarnation: int,
) -> Child:
    """All processes of a node of this host, one a rank; the first of them.

    cores: of a rank, None: where it likes. close: what none of them may hold.
    """
    ranks = plan.ranks(task.role)
    if ranks == 1:
        main = main_of(plan, task, None)
        return fork_ranks(task.role, task.node, [(main, ())], cores, close, incarnation)
    attention = task.role is Role.ATTENTION
    seats = RankSeats[Any](plan.half_layout if attention else plan.rows_layout)
    try:
        mains = [main_of(plan, task, seats.leading), *_others(plan, task, seats)]
        own = [(main, seats.not_of(rank)) for rank, main in enumerate(mains)]
        return fork_ranks(task.role, task.node, own, cores, close, incarnation)
    finally:
        seats.close()


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
        import_module(ROADS[plan.road.kind])


def _others(plan: Plan, task: NodeTask, seats: RankSeats[Any]) -> list[ChildMain]:
    """Of the ranks but the first, in order."""
    from megainfer.attention_node.ranks import following as halves
    from megainfer.expert_node import following as experts

    node, weights = task.node, task.weights
    if task.role is Role.ATTENTION:
        return [
            partial(halves.run_following, plan=plan, node=node, seat=seat, weights=weights)
            for seat in seats.others
        ]
    return [
        partial(
            experts.run_following,
            plan=plan,
            node=node,
            seat=seat,
            placement=task.placement or plan.placement,
            weights=weights,
        )
        for seat in seats.others
    ]
