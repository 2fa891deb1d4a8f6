"""What no deployment of a family can exceed, from the best rates of its parts alone.

With B sequences in m micro-batches and t seconds between tokens, t is at least what each attention
node computes, what the expert nodes compute and what the messages take, in all micro-batches; and
at least the sum of these three in one of them. So

    B / t <= min(n r_a, r_e, 2 n r_c, m / (1 / (n r_a) + 1 / r_e + 1 / (n r_c)))

where n is the number of attention nodes, r_a the most sequences a second that one of them could
decode within the limits on memory and latency if it waited for nothing, r_e the same of all expert
nodes, and r_c of one attention node's messages, both ways one after the other. r_a and r_e each are
a matter of one role, so that few of them have to be computed; r_c falls as n grows, within a
scale-up domain and beyond it, so that of several n the larger of both least ones' holds for all.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.rates import rate_bound
from megainfer.planner.search.space import Family, Key, Space
from megainfer.planner.search.workload import Objective, Target

SLACK = 1 + 1e-9
"""A bound is a sum of floats, and so is what it bounds."""
TIGHT, LOOSE = 0.03, 0.15
"""How much bounds on rates may be above them: of all families there are too many for more."""


@dataclass(frozen=True, slots=True)
class Parts:
    """r_a, r_e and r_c in sequences a second, and m."""

    own: float
    theirs: float
    road: float
    micro_batches: int

    def most(self, nodes: int) -> float:
        """Sequences a second with so many attention nodes."""
        own, road = nodes * self.own, nodes * self.road
        if 0 in (own, road, self.theirs):
            return 0.0
        round_trip = 1 / own + 1 / self.theirs + 1 / road
        return min(own, self.theirs, 2 * road, self.micro_batches / round_trip)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on `Prediction.value(objective)`, of the families of one search."""

    predictor: Predictor
    target: Target
    objective: Objective
    space: Space
    _rates: dict[Key, float] = field(default_factory=dict, repr=False)
    _possible: dict[Key, int] = field(default_factory=dict, repr=False)
    _by_rows: dict[Key, tuple[float, ...]] = field(default_factory=dict, repr=False)

    def attention_rates(self, device: Device, tp: int, together: bool = False) -> tuple[float, ...]:
        """Sequences a second that one node alone could decode, by number of them, as in
        `space.rows`; to where a step takes too long. together: nothing is packed for others."""
        key = ("by rows", device.name, tp, together)
        if key not in self._by_rows:
            node = Nodes(device, tp, 1)
            rates = self._attention_rates(node, None if together else node)
            self._by_rows[key] = tuple(rates)
        return self._by_rows[key]

    def _attention_rates(self, node: Nodes, experts: Nodes | None) -> Iterator[float]:
        for rows in self.grid:
            took = self.predictor.attention_seconds(node, rows, experts)
            if took > self.target.tpot_seconds * SLACK:
                return
            yield rows / took

    @property
    def grid(self) -> tuple[int, ...]:
        """Numbers of sequences that are looked at. Nothing is faster with more than one."""
        return (1,) if self.objective is Objective.LATENCY else self.space.rows

    def attention_rate(self, device: Device, tp: int, m: int) -> float:
        """r_a with m micro-batches: sequences a second."""
        key = ("attention", device.name, tp, m)
        if key not in self._rates:
            possible = self.possible(device, tp, m)
            self._rates[key] = max(self.attention_rates(device, tp)[:possible], default=0.0)
        return self._rates[key]

    def possible(self, device: Device, tp: int, m: int) -> int:
        """How many of the numbers of sequences in `space.rows` attention nodes may have in each of
        m micro-batches, by their own memory and seconds."""
        key = (device.name, tp, m)
        if key not in self._possible:
            rates, grid = self.attention_rates(device, tp), self.grid
            in_time = bisect_left(
                range(len(rates)),
                True,
                key=lambda at: m * grid[at] > rates[at] * self.target.tpot_seconds * SLACK,
            )
            self._possible[key] = bisect_left(
                grid[:in_time],
                True,
                key=lambda rows: not self._attention_fits(device, tp, m, rows),
            )
        return self._possible[key]

    def _attention_fits(self, device: Device, tp: int, m: int, rows: int) -> bool:
        """With expert nodes as few as can be."""
        workload = self.predictor.workload
        costs = self.predictor.costs.attention(device, tp)
        tokens = workload.cache_tokens(rows * m)
        needs = costs.memory(tokens, rows * m, workload.most_rows(rows), m, 1)
        return needs.total <= device.memory_bytes

    def expert_rate(self, nodes: Nodes, m: int, tolerance: float = TIGHT) -> float:
        """r_e with m micro-batches: sequences a second; at most as much above what can be."""
        key = ("experts", nodes.device.name, nodes.tp, nodes.count, nodes.spares, m, tolerance)
        if key not in self._rates:
            predictor = self.predictor
            a_sequence = predictor.step(1).rows

            def seconds(rows: float) -> float:
                took = predictor.expert_seconds(nodes, rows * a_sequence)
                return took if took * m <= self.target.tpot_seconds * SLACK else inf

            most = 1.0 if self.objective is Objective.LATENCY else 2.0**30
            self._rates[key] = rate_bound(seconds, most, tolerance)
        return self._rates[key]

    def _most_expert_rate(self, family: Family) -> float:
        """r_e with any of its spare experts."""
        return max(self.expert_rate(own.experts, 1, LOOSE) for own in family.split())

    def _most_road_rate(self, family: Family, first: int, last: int) -> float:
        """r_c where `first` to `last` attention nodes send at once. NICs may carry small messages
        faster than links do, so that leaving the domain may help."""
        beyond = family.most_in_one_domain + 1
        least = (first, beyond) if first < beyond <= last else (first,)
        return max(self._road_rate(family, nodes) for nodes in least)

    def _road_rate(self, family: Family, nodes: int) -> float:
        """r_c where so many attention nodes send at once."""
        key = ("road", *family.key, family.experts.spares, nodes)
        if key not in self._rates:
            self._rates[key] = self._bounded_road_rate(family, nodes)
        return self._rates[key]

    def _bounded_road_rate(self, family: Family, nodes: int) -> float:
        possible = self.possible(family.device, family.tp, 1)
        if not possible:
            return 0.0
        plan = family.deployment(nodes, 1, 1)
        road = self.predictor.costs.road(plan.attention, plan.experts)
        layers, a_sequence = self.predictor.layers, self.predictor.step(1).rows

        def seconds(rows: float) -> float:
            sent = rows * a_sequence
            took = layers * (road.dispatch(sent).total + road.combine(sent).total)
            return took if took <= self.target.tpot_seconds * SLACK else inf

        if seconds(1.0) == 0.0:
            return inf
        return rate_bound(seconds, float(self.grid[possible - 1]), TIGHT)

    def of(self, family: Family, m: int | None, first: int, last: int) -> float:
        """What no such plan with `first` to `last` attention nodes exceeds. m None: with any m, and
        any of the family's spare experts; messages are left out then.

        It is a concave function of their number over a linear one: it rises to its best, then
        falls.
        """
        parts = Parts(
            self.attention_rate(family.device, family.tp, m or 1),
            self._most_expert_rate(family) if m is None else self.expert_rate(family.experts, m),
            inf if m is None else self._most_road_rate(family, first, last),
            m or self.space.most_micro_batches,
        )
        low, high = first, last
        while low < high:
            middle = (low + high) // 2
            if self._value(family, parts, middle) < self._value(family, parts, middle + 1):
                low = middle + 1
            else:
                high = middle
        return self._value(family, parts, low)

    def _value(self, family: Family, parts: "Parts", nodes: int) -> float:
        rate = SLACK * parts.most(nodes)
        if self.objective is Objective.LATENCY:
            return rate
        return rate / (nodes * self._node(family) + self._experts(family))

    def together(self, plan: Deployment) -> float:
        """What a colocated plan doesn't exceed with any batch: attention and experts take turns, so
        that a sequence takes what it takes each of them at least."""
        attention = plan.attention
        rates = self.attention_rates(attention.device, attention.tp, together=True)
        own, theirs = max(rates, default=0.0), self.expert_rate(plan.experts, 1, LOOSE)
        if 0 in (own, theirs):
            return 0.0
        if self.objective is Objective.LATENCY:
            return SLACK / (1 / own + 1 / theirs)
        return SLACK / (1 / (attention.count * own) + 1 / theirs) / plan.spent(self.objective)

    def _node(self, family: Family) -> float:
        """What an attention node counts for."""
        return family.tp * self.objective.units(family.device)

    def _experts(self, family: Family) -> float:
        """What all expert nodes count for."""
        return family.experts.devices * self.objective.units(family.experts.device)
