"""Experts whose load is uneven, with and without somebody who moves them.

    python benchmarks/balancing.py                 # four tables by simulation
    python benchmarks/balancing.py --processes     # and real nodes with set stage times

Tokens choose top-k of E experts, as popular as in Zipf's law, in another order in each layer; an
expert costs a node its reading, once a batch that chose it, and its rows. `Balancer` looks at
nodes' counters at even distances and moves what is worth it. Columns:

    R          experts of each layer that a node holds beyond its share (--expert-replicas)
    slowest    time of the slowest expert node by the mean of all, layer by layer (1: even)
    in a batch the same of single batches: what chance leaves
    reads      experts that all nodes together read in a batch of a layer
    moved      experts that came to a node, since the last row
    tok/s      of decoding, by the pipeline's simulator (or measured, with --processes)
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import Any

from choosing import Choosing
from measures import difference, hardware, of_role
from rich.console import Console
from rich.table import Table
from synthetic import Stages, SyntheticCluster, without_threads

from megainfer.planner.balancing import Balancer, ReadCost
from megainfer.planner.balancing.balancer import Proposal
from megainfer.simulator import Cost, Scenario, simulate
from megainfer.simulator.experts import ExpertNodes, Traffic
from megainfer.topology import WAYS, Membership, Placement, first_membership, placed
from megainfer.topology import Table as Dealt

Told = Mapping[str, dict[str, Any]]  # by node, its counters
NODES = 4
LAYERS = 4


@dataclass(frozen=True)
class Found:
    """Of some batches. slowest, in_batch: by the mean. seconds: of the slowest node, a batch of a
    layer."""

    slowest: float
    in_batch: float
    reads: float
    seconds: float


def measured(nodes: ExpertNodes, cost: ReadCost, batches: int) -> Found:
    times = [[0.0] * NODES for _ in range(LAYERS)]
    peaks, reads = 0.0, 0
    for _ in range(batches):
        for layer, works in enumerate(nodes.batch()):
            own = [cost.read * work.reads + cost.row * work.rows for work in works]
            times[layer] = [sum(pair) for pair in zip(times[layer], own, strict=True)]
            peaks += max(own)
            reads += sum(work.reads for work in works)
    mean = sum(map(sum, times)) / NODES
    count = batches * LAYERS
    return Found(sum(map(max, times)) / mean, peaks / mean, reads / count, peaks / count)


class Watched:
    """Simulated nodes, and a balancer that looks at them. cost: seconds."""

    def __init__(self, traffic: Traffic, replicas: int, cost: ReadCost) -> None:
        choosing = Choosing(traffic.experts, traffic.top_k, replicas=replicas)
        first = choosing.placement(NODES, LAYERS)
        self.nodes = ExpertNodes(traffic, first)
        self.membership = first_membership(1, first)
        self._balancer = Balancer(traffic.layers, traffic.experts, cost)
        self._cost = cost
        self._told()

    def serve(self, batches: int) -> Found:
        found = measured(self.nodes, self._cost, batches)
        self._told()
        return found

    def look(self) -> Proposal | None:
        proposal = self._balancer.propose(self.membership)
        if proposal is not None:
            self.membership = entered(self.membership, proposal.placement)
            self.nodes.placement = proposal.placement
        return proposal

    def _told(self) -> None:
        for node, counters in self.nodes.counters():
            self._balancer.hear(node, counters)


def entered(membership: Membership, placement: Placement) -> Membership:
    return replace(membership, epoch=membership.epoch + 1, placement=placement)


def decoding(found: Found, tokens: int, attention: float) -> float:
    """Tokens a second of two attention nodes, of which each has half of the batch's rows in each of
    two micro-batches; expert nodes take the slowest one's time."""
    scenario = Scenario(
        attention_nodes=2,
        expert_nodes=NODES,
        layers=LAYERS,
        rows=tokens // 2,
        choosing=1.0,
        attention=Cost(attention, 0.0),
        expert=Cost(found.seconds, 0.0),
        jitter=0.02,
    )
    return simulate(scenario).tokens_per_second


# --- simulated ------------------------------------------------------------------------------------


def skewed(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Before, and after looking until nothing more is worth it."""
    traffic, cost = traffic_of(args), cost_of(args)
    for replicas in args.replicas:
        watched = Watched(traffic, replicas, cost)
        before = watched.serve(args.batches)
        moved, looks = 0, 0
        while (proposal := watched.look()) is not None and looks < 10:
            moved, looks = moved + proposal.moved, looks + 1
            watched.serve(args.batches)
        after = watched.serve(args.batches)
        first, then = (decoding(f, args.tokens, args.t_a / 1e3) for f in (before, after))
        yield (
            str(replicas),
            f"{before.slowest:.2f} -> {after.slowest:.2f}",
            f"{before.in_batch:.2f} -> {after.in_batch:.2f}",
            f"{before.reads:.1f} -> {after.reads:.1f}",
            f"{moved} in {looks}",
            f"{first:.0f} -> {then:.0f} ({then / first - 1:+.0%})",
        )


def turning(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """A look every 10 s, and every 60 s others are popular."""
    watched = Watched(traffic_of(args), max(args.replicas), cost_of(args))
    watched.serve(args.batches)
    for number in range(18):
        if number and number % 6 == 0:
            watched.nodes.turn()
        proposal = watched.look() if number else None
        found = watched.serve(args.batches)
        turned = "others are popular" if number % 6 == 0 else ""
        yield (
            f"{10 * number} s",
            turned,
            str(proposal.moved) if proposal else "-",
            f"{found.slowest:.2f}",
        )


def even(args: argparse.Namespace) -> tuple[str, ...]:
    """How often something would have moved."""
    traffic = replace(traffic_of(args), exponent=0.0)
    watched = Watched(traffic, max(args.replicas), cost_of(args))
    proposals, worst = 0, 0.0
    for _ in range(60):
        worst = max(worst, watched.serve(args.batches).slowest)
        proposals += watched.look() is not None
    return "60", str(proposals), f"{worst:.2f}"


def rules(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Ways of dealing tokens among replicas, on the experts' places that the balancer came to."""
    traffic, cost = traffic_of(args), cost_of(args)
    watched = Watched(traffic, max(args.replicas), cost)
    for _ in range(8):
        watched.serve(args.batches)
        watched.look()
    by_cost = watched.nodes.placement
    for name, dealt in (
        ("all to the first holder", first_holder),
        ("as many to each holder", equal_parts),
        ("parts by cost", None),
    ):
        tables = {layer: by_cost.table(layer) for layer in by_cost.layers}
        if dealt is not None:
            tables = {layer: dealt(table) for layer, table in tables.items()}
        watched.nodes.placement = placed(by_cost.num_experts, tables)
        found = measured(watched.nodes, cost, args.batches)
        yield (
            name,
            f"{found.slowest:.2f}",
            f"{found.reads:.1f}",
            f"{found.seconds * 1e3:.3f}",
        )


def first_holder(table: Dealt) -> Dealt:
    firsts = {expert: min(homes) for expert, homes in table.holders.items()}
    return with_ways(table, lambda expert, node, count: WAYS if firsts[expert][0] == node else 0)


def equal_parts(table: Dealt) -> Dealt:
    order = {e: sorted(node for node, _ in homes) for e, homes in table.holders.items()}

    def part(expert: int, node: int, count: int) -> int:
        return WAYS // count + (order[expert].index(node) < WAYS % count)

    return with_ways(table, part)


def with_ways(table: Dealt, ways_of: Callable[[int, int, int], int]) -> Dealt:
    """ways_of: an expert's, on a node, of so many holders."""
    ways = tuple(
        tuple(ways_of(e, node, len(table.holders[e])) if e >= 0 else 0 for e in own)
        for node, own in enumerate(table.experts)
    )
    return Dealt(table.experts, ways)


# --- real nodes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """slowest: as in Found. tokens: a second."""

    slowest: float
    tokens: float


def real(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Nodes in processes of their own, watched as a supervisor would."""
    choosing = Choosing(
        args.experts,
        args.top_k,
        args.exponent,
        args.slow * args.read / 1e6,
        args.slow * args.row / 1e6,
        max(args.replicas),
        args.turn,
        monotonic(),
    )
    stages = Stages(
        num_attention=2,
        num_expert=NODES,
        micro_batches=2,
        layers=LAYERS,
        rows=args.tokens // 2,
        attention=args.slow * args.t_a / 1e3,
        expert=Cost(0.0, 0.0),
        choosing=choosing,
    )
    balancer = Balancer(range(LAYERS), args.experts, cost_of(args))
    with SyntheticCluster(stages) as cluster:
        sleep(1.0)
        before = cluster.counters()
        for number in range(args.looks):
            started = monotonic()
            sleep(args.seconds)
            now = cluster.counters()
            window = window_of(before, now, stages, monotonic() - started)
            before = now
            for node in range(NODES):
                balancer.hear(node, now[f"expert node {node}"])
            proposal = balancer.propose(cluster.membership)
            if proposal is not None:
                cluster.enter(entered(cluster.membership, proposal.placement))
                before = cluster.counters()
            yield (
                f"{number * args.seconds:g} s",
                f"{window.slowest:.2f}",
                f"{window.tokens:.0f}",
                "-" if proposal is None else str(proposal),
            )


def window_of(before: Told, now: Told, stages: Stages, seconds: float) -> Window:
    assert stages.choosing is not None
    read, row = stages.choosing.read, stages.choosing.row
    names = [f"expert node {node}" for node in range(NODES)]
    times = [
        [
            sum(grown(before[name], now[name], "expert_tokens", layer)) * row
            + sum(grown(before[name], now[name], "expert_reads", layer)) * read
            for name in names
        ]
        for layer in range(LAYERS)
    ]
    delta = {name: difference(before[name], now[name]) for name in now}
    dispatches = sum(own["dispatch_count"] for own in of_role(delta, "attention"))
    tokens = stages.rows * dispatches / stages.layers / seconds
    return Window(sum(map(max, times)) * NODES / sum(map(sum, times)), tokens)


def grown(
    before: Mapping[str, Any], now: Mapping[str, Any], counter: str, layer: int
) -> Iterator[float]:
    old = before[counter][layer]
    return (count - old.get(expert, 0) for expert, count in now[counter][layer].items())


# --- report ---------------------------------------------------------------------------------------


def traffic_of(args: argparse.Namespace) -> Traffic:
    return Traffic(
        range(LAYERS),
        args.experts,
        args.top_k,
        args.tokens,
        args.exponent,
        seed=7,
    )


def cost_of(args: argparse.Namespace) -> ReadCost:
    """In seconds."""
    return ReadCost(args.read / 1e6, args.row / 1e6)


def show(
    console: Console, title: str, columns: Sequence[str], rows: Iterator[tuple[str, ...]]
) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="of a batch of all attention nodes")
    parser.add_argument("--exponent", type=float, default=1.0)
    parser.add_argument("--replicas", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--read", type=float, default=40.0, help="us of reading an expert")
    parser.add_argument("--row", type=float, default=10.0, help="us of a row")
    parser.add_argument("--t-a", type=float, default=1.0, help="ms of an attention half")
    parser.add_argument("--batches", type=int, default=60, help="between two looks, simulated")
    parser.add_argument("--processes", action="store_true", help="real nodes as well")
    parser.add_argument("--seconds", type=float, default=8.0, help="between two looks, real")
    parser.add_argument(
        "--slow", type=float, default=20.0, help="times as slow, real: 6 processes share the cores"
    )
    parser.add_argument("--looks", type=int, default=5, help="real")
    parser.add_argument("--turn", type=float, help="seconds until others are popular, real")
    return parser.parse_args()


def main() -> None:
    args = parse()
    console = Console(highlight=False, width=140)
    console.print(
        f"{hardware()}\n{NODES} expert nodes, {args.experts} experts, top-{args.top_k}, Zipf "
        f"{args.exponent:g}, batches of {args.tokens} tokens; reading an expert {args.read:g} us, "
        f"a row {args.row:g} us"
    )
    show(
        console,
        "A skewed load",
        ("R", "slowest", "in a batch", "reads", "moved in looks", "tok/s (simulated)"),
        skewed(args),
    )
    dealing = ("replicas' tokens", "slowest", "reads", "ms a batch")
    show(console, "Dealing tokens among replicas", dealing, rules(args))
    show(console, "A load that turns", ("at", "", "moved", "slowest"), turning(args))
    show(console, "An even load", ("looks", "proposals", "slowest"), iter([even(args)]))
    if args.processes:
        title = "Real nodes, stage times set"
        show(console, title, ("at", "slowest", "tok/s", "then"), real(args))


if __name__ == "__main__":
    sys.exit(without_threads(main))
