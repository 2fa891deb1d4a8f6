"""Who decides when experts move, and where to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megainfer.planner.balancing.cost import Costs, ReadCost, costs_of, node_costs
from megainfer.planner.balancing.fresh import fresh_placement
from megainfer.planner.balancing.loads import LEAST_BATCHES, Loads
from megainfer.planner.balancing.steps import Steps
from megainfer.topology import Membership, Placement, Table, placed

LEAST_GAIN = 0.03
"""Of the experts' time, what a new placement must save: to enter it costs everybody the steps that
are in flight."""
NOISE = 3.0
"""How many standard deviations of what chance does to counts the gain must be above it too: on an
even load nothing moves."""
LAYERS_A_TIME = 16
"""Those that have most to gain are looked at; others have their turn next time."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A placement, what it would change, and what that is good for.

    before, after: predicted cost of all layers, in rows: of each what it costs its busiest node.
    mean: what it would be if all nodes had as much to do. moved: experts that come to a node.
    """

    placement: Placement
    before: float
    after: float
    mean: float
    moved: int
    layers: int

    @property
    def gain(self) -> float:
        """The share of the busiest nodes' time that it saves."""
        return 1 - self.after / self.before if self.before > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.moved} experts move in {self.layers} layers: the busiest node's time from "
            f"{self.before / self.mean:.2f} to {self.after / self.mean:.2f} times the mean"
        )


class Balancer:
    """Counters of expert nodes in; now and then, a better placement out.

    layers: those with experts, by their numbers. cost: how expensive reading is. moves: how many
    experts of each layer, over all of them together, may be on their way to a node at a time.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_experts: int,
        cost: ReadCost | None = None,
        moves: int = 1,
        least_gain: float = LEAST_GAIN,
    ) -> None:
        self._layers = tuple(layers)
        self._cost = cost or ReadCost()
        self._moves = moves * len(self._layers)
        self._least_gain = least_gain
        self._loads = Loads(len(self._layers), num_experts)

    def hear(self, node: int, counters: Mapping[str, Any]) -> None:
        """What an expert node says that it has counted since its start."""
        if "expert_reads" in counters:
            self._loads.hear(node, counters)

    def forget(self, node: int) -> None:
        """An expert node has left, or died."""
        self._loads.forget(node)

    def propose(self, membership: Membership) -> Proposal | None:
        """A placement on the same nodes that would save enough; None where there is none, or too
        little is known. What a conclusion was drawn from counts less from then on."""
        if self._loads.batches(membership.experts) < LEAST_BATCHES:
            return None
        costs = {layer: self._costs(position) for position, layer in enumerate(self._layers)}
        proposal = self._better(membership, costs)
        noise = NOISE * self._noise(len(membership.experts))
        gain = proposal.gain if proposal is not None else 0.0
        if self._least_gain < gain <= noise:
            return None  # it may be chance: more will be known next time
        self._loads.fade()
        return proposal if gain > self._least_gain else None

    def fresh(self, nodes: Sequence[int], replicas: int, before: Placement) -> Placement:
        """A placement for other nodes than before, by what is known of loads. See
        `fresh_placement`."""
        costs = {layer: self._costs(position) for position, layer in enumerate(self._layers)}
        return fresh_placement(costs, nodes, replicas, before)

    def _costs(self, position: int) -> Costs:
        return costs_of(self._loads.layer(position), self._cost)

    def _better(self, membership: Membership, costs: Mapping[int, Costs]) -> Proposal | None:
        placement, nodes = membership.placement, membership.experts
        peaks = {n: node_costs(placement.table(n), own) for n, own in costs.items()}
        before = {layer: max(own) for layer, own in peaks.items()}
        means = {layer: sum(own) / len(nodes) for layer, own in peaks.items()}
        order = sorted(self._layers, key=lambda layer: means[layer] - before[layer])
        room = dict.fromkeys(nodes, self._moves)
        tables = {layer: placement.table(layer) for layer in self._layers}
        after = dict(before)
        for layer in order[:LAYERS_A_TIME]:
            steps = Steps(tables[layer], costs[layer], nodes, room)
            tables[layer], after[layer] = steps.run(), steps.peak
        changed = [layer for layer in self._layers if tables[layer] != placement.table(layer)]
        if not changed:
            return None
        return Proposal(
            placed(placement.num_experts, tables),
            sum(before.values()),
            sum(after.values()),
            sum(means.values()),
            sum(_coming(placement.table(layer), tables[layer]) for layer in changed),
            len(changed),
        )

    def _noise(self, nodes: int) -> float:
        """The standard deviation, as a share, of what a node is counted to have to do in a
        layer."""
        rows = [self._loads.rows_of(position) / nodes for position in range(len(self._layers))]
        return 1 / math.sqrt(max(1.0, sum(rows) / len(rows)))


def _coming(before: Table, after: Table) -> int:
    """Experts that a node doesn't hold yet."""
    pairs = zip(before.experts, after.experts, strict=True)
    return sum(len(set(new) - set(old)) for old, new in pairs)
