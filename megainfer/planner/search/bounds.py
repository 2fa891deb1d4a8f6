"""What no deployment of a family can exceed, from each role's own best rate.

With B tokens decoded a step of t seconds, t is at least what the attention nodes compute and at
least what the experts do, and with one micro-batch at least their sum. So B / t is at most
min(n_a r_a, r_e), with one micro-batch at most 1 / (1 / (n_a r_a) + 1 / r_e), where r_a is the most
that one attention node alone could decode in a second within the limits on memory and latency, and
r_e the same of all expert nodes. Neither depends on the other role, so few of each are needed.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor, inf, sqrt

from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.rates import rate_bound
from megainfer.planner.search.space import Family, Key, Space
from megainfer.planner.search.workload import Objective, Target

SLACK = 1 + 1e-9
"""A bound is a sum of floats, and so is what it bounds."""


def units(device: Device, objective: Objective) -> float:
    """What one device counts for; with latency nothing is counted."""
    match objective:
        case Objective.GPU:
            return 1.0
        case Objective.COST:
            return device.price
        case Objective.WATT:
            return device.watts
        case Objective.LATENCY:
            return 0.0


def spent(deployment: Deployment, objective: Objective) -> float:
    """What the devices of one instance count for."""
    return sum(role.devices * units(role.device, objective) for role in deployment.roles)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on `Prediction.value(objective)`, of the families of one search."""

    predictor: Predictor
    target: Target
    objective: Objective
    space: Space
    _rates: dict[Key, float] = field(default_factory=dict, repr=False)
    _by_rows: dict[Key, tuple[float, ...]] = field(default_factory=dict, repr=False)

    def attention_rates(self, device: Device, tp: int) -> tuple[float, ...]:
        """Sequences a second that one node alone could decode, by number of them, as in
        `space.rows`; to where a step takes too long. Empty where the model can't be shared so."""
        key = ("by rows", device.name, tp)
        if key not in self._by_rows:
            self._by_rows[key] = tuple(self._attention_rates(device, tp))
        return self._by_rows[key]

    def _attention_rates(self, device: Device, tp: int) -> Iterator[float]:
        node = Nodes(device, tp, 1)
        for rows in self._grid():
            took = self.predictor.attention_seconds(node, rows)
            if took > self.target.tpot_seconds:
                return
            yield rows / took

    def _grid(self) -> tuple[int, ...]:
        return (1,) if self.objective is Objective.LATENCY else self.space.rows

    def attention_rate(self, device: Device, tp: int, m: int) -> float:
        """r_a with m micro-batches: sequences a second."""
        key = ("attention", device.name, tp, m)
        if key not in self._rates:
            rates = self.attention_rates(device, tp)
            grid = self._grid()
            possible = [
                rate
                for rows, rate in zip(grid, rates, strict=False)
                if m * rows <= rate * self.target.tpot_seconds
            ]
            fitting = bisect_left(
                grid[: len(possible)],
                True,
                key=lambda rows: not self._attention_fits(device, tp, m, rows),
            )
            self._rates[key] = max(possible[:fitting], default=0.0)
        return self._rates[key]

    def _attention_fits(self, device: Device, tp: int, m: int, rows: int) -> bool:
        """With expert nodes as few as can be."""
        workload = self.predictor.workload
        costs = self.predictor.costs.attention(device, tp)
        needs = costs.memory(rows * m * workload.context, rows * m, workload.most_rows(rows), m, 1)
        return needs.total <= device.memory_bytes

    def expert_rate(self, nodes: Nodes, m: int) -> float:
        """r_e with m micro-batches: sequences a second."""
        key = ("experts", nodes.device.name, nodes.tp, nodes.count, m)
        if key not in self._rates:
            predictor = self.predictor
            a_sequence = predictor.step(1).rows

            def seconds(rows: float) -> float:
                took = predictor.expert_seconds(nodes, rows * a_sequence)
                return took if took * m <= self.target.tpot_seconds else inf

            most = 1.0 if self.objective is Objective.LATENCY else 2.0**30
            self._rates[key] = rate_bound(seconds, most)
        return self._rates[key]

    def of(self, family: Family, m: int | None, nodes: int) -> float:
        """What no such plan with so many attention nodes exceeds. m None: with any m; limits are
        widest where it is 1."""
        own = nodes * self.attention_rate(family.device, family.tp, m or 1)
        theirs = self.expert_rate(family.experts, m or 1)
        if own == 0 or theirs == 0:
            return 0.0
        rate = 1 / (1 / own + 1 / theirs) if m == 1 else min(own, theirs)
        if self.objective is Objective.LATENCY:
            return SLACK * rate
        return SLACK * rate / (nodes * self._node(family) + self._experts(family))

    def over_nodes(self, family: Family, m: int | None, most: int) -> float:
        """The same with 1 to `most` attention nodes: `of` rises to the number that balances both
        roles, or, with one micro-batch, to the one where spending more stops paying; then falls."""
        own = self.attention_rate(family.device, family.tp, m or 1)
        theirs = self.expert_rate(family.experts, m or 1)
        if own == 0 or theirs == 0:
            return 0.0
        best = theirs / own
        if m == 1 and self.objective is not Objective.LATENCY:
            best = sqrt(theirs * self._experts(family) / (own * self._node(family)))
        low = max(1, min(most, floor(min(best, 2.0**40))))
        return max(self.of(family, m, nodes) for nodes in {low, min(low + 1, most)})

    def together(self, plan: Deployment) -> float:
        """What a colocated plan doesn't exceed with any batch: both halves take turns there."""
        own = plan.attention.count * self.attention_rate(plan.attention.device, plan.attention.tp, 1)
        theirs = self.expert_rate(plan.experts, 1)
        if own == 0 or theirs == 0:
            return 0.0
        rate = SLACK / (1 / own + 1 / theirs)
        return rate if self.objective is Objective.LATENCY else rate / spent(plan, self.objective)

    def _node(self, family: Family) -> float:
        """What an attention node counts for."""
        return family.tp * units(family.device, self.objective)

    def _experts(self, family: Family) -> float:
        """What all expert nodes count for."""
        return family.experts.devices * units(family.experts.device, self.objective)
