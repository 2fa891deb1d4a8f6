"""What no deployment of a family can exceed, from each role's own best rate.

With B tokens decoded a step of t seconds, t is at least what the attention nodes compute and at
least what the experts do, and with one micro-batch at least their sum. So B / t is at most
min(n_a r_a, r_e), with one micro-batch at most 1 / (1 / (n_a r_a) + 1 / r_e), where r_a is the most
that one attention node alone could decode in a second within the limits on memory and latency, and
r_e the same of all expert nodes. Neither depends on the other role, so few of each are needed.
"""

from dataclasses import dataclass, field
from math import floor, inf, sqrt

from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.rates import rate_bound
from megainfer.planner.search.space import Family, Space
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
    _rates: dict[tuple[object, ...], float] = field(default_factory=dict, repr=False)

    def attention_rate(self, device: Device, tp: int, m: int) -> float:
        """r_a with m micro-batches: sequences a second."""
        key = ("attention", device.name, tp, m)
        if key not in self._rates:
            predictor, layers = self.predictor, self.predictor.costs.moe_layers
            node, workload = Nodes(device, tp, 1), predictor.workload
            costs = predictor.costs.attention(device, tp)

            def seconds(rows: float) -> float:
                sequences = floor(rows) * m
                step = workload.step(rows)
                took = (
                    layers * predictor.attention(node, step, 1).total
                    + predictor.outside(node, step).total
                )
                if took * m > self.target.tpot_seconds:
                    return inf
                most = workload.most_rows(floor(rows))
                needs = costs.memory(sequences * workload.context, sequences, most, m, 1)
                return took if needs.total <= device.memory_bytes else inf

            self._rates[key] = rate_bound(seconds, self._most_rows())
        return self._rates[key]

    def expert_rate(self, nodes: Nodes, m: int) -> float:
        """r_e with m micro-batches: sequences a second."""
        key = ("experts", nodes.device.name, nodes.tp, nodes.count, m)
        if key not in self._rates:
            predictor = self.predictor
            most = 1.0 if self.objective is Objective.LATENCY else 2.0**30
            layers, a_sequence = predictor.costs.moe_layers, predictor.workload.step(1).rows

            def seconds(rows: float) -> float:
                took = layers * predictor.experts(nodes, rows * a_sequence).total
                return took if took * m <= self.target.tpot_seconds else inf

            self._rates[key] = rate_bound(seconds, most)
        return self._rates[key]

    def _most_rows(self) -> float:
        return 1.0 if self.objective is Objective.LATENCY else float(self.space.most_rows)

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
