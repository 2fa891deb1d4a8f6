"""The best deployments with attention and experts apart: branch and bound."""

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf

from megainfer.planner.search.bounds import SLACK, Bounds, spent
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.space import Family, Key, Space, colocated, families
from megainfer.planner.search.workload import Objective, Target


@dataclass(frozen=True, slots=True)
class Found:
    """The best of one family, and its value."""

    value: float
    deployment: Deployment


@dataclass(slots=True)
class Best:
    """The best of each of the `top` best families so far."""

    top: int
    _found: dict[Key, Found] = field(default_factory=dict)

    def floor(self, family: Key) -> float:
        """What a plan of this family has to exceed to matter."""
        own = self._found.get(family)
        return max(self.least, own.value if own else 0.0)

    @property
    def least(self) -> float:
        """What a plan of another family has to exceed to matter."""
        if len(self._found) < self.top:
            return 0.0
        return min(found.value for found in self._found.values())

    def add(self, family: Key, found: Found) -> None:
        self._found[family] = found
        if len(self._found) > self.top:
            del self._found[min(self._found, key=lambda key: self._found[key].value)]

    def ranked(self) -> tuple[Deployment, ...]:
        ranked = sorted(self._found.values(), key=lambda found: -found.value)
        return tuple(found.deployment for found in ranked)


@dataclass(frozen=True, slots=True)
class Search:
    """The plans of one inventory that keep one target, best first."""

    predictor: Predictor
    inventory: Inventory
    target: Target
    objective: Objective
    space: Space

    def apart(self, top: int) -> tuple[Deployment, ...]:
        """The best plan of each of the `top` best families.

        Families wait in the order of what they could bring at most; the first is looked at for each
        m, then for each number of attention nodes, in the same order. What could at most bring less
        than is already there is left out, and nothing else.
        """
        bounds = Bounds(self.predictor, self.target, self.objective, self.space)
        best, order = Best(top), count()
        waiting = list[tuple[float, int, Family, int | None]]()  # (-bound, order, family, m or any)

        def wait(family: Family, m: int | None) -> None:
            bound = bounds.over_nodes(family, m, self._most_nodes(family))
            if bound > best.floor(family.key):
                heappush(waiting, (-bound, next(order), family, m))

        for family in families(self.space, self.inventory, self.predictor.costs.num_experts):
            if self._holds_experts(family):
                wait(family, None)
        while waiting and -waiting[0][0] > best.least:
            _, _, family, m = heappop(waiting)
            if m is not None:
                self._look(family, m, bounds, best)
                continue
            for m in self._micro_batches():
                wait(family, m)
        return best.ranked()

    def _holds_experts(self, family: Family) -> bool:
        nodes = family.experts
        costs = self.predictor.costs.experts(nodes.device, nodes.tp, nodes.count)
        return costs.memory(1.0, 1, 1).total <= nodes.device.memory_bytes

    def _micro_batches(self) -> range:
        most = 1 if self.objective is Objective.LATENCY else self.space.most_micro_batches
        return range(1, most + 1)

    def _most_nodes(self, family: Family) -> int:
        if self.objective is Objective.LATENCY:
            return 1  # nothing is faster with more of them
        return family.most_nodes(self.inventory)

    def _look(self, family: Family, m: int, bounds: Bounds, best: Best) -> None:
        bounded = [
            (bound, -nodes)
            for nodes in range(1, self._most_nodes(family) + 1)
            if (bound := bounds.of(family, m, nodes)) > best.floor(family.key)
        ]
        for bound, negative in sorted(bounded, reverse=True):
            floor = best.floor(family.key)
            if bound <= floor:
                break
            found = self._best_rows(family.deployment(-negative, m, 1), bounds, floor)
            if found is not None:
                best.add(family.key, found)

    def together(self, top: int) -> tuple[Deployment, ...]:
        """The best colocated plans, each with its best batch."""
        bounds = Bounds(self.predictor, self.target, self.objective, self.space)
        baselines = colocated(self.space, self.inventory, self.predictor.costs.num_experts)
        bounded = sorted(
            ((bounds.together(plan), plan) for plan in baselines),
            key=lambda pair: pair[0],
            reverse=True,
        )
        best = Best(top)
        for bound, plan in bounded:
            if bound <= best.least:
                break
            found = self._best_rows(plan, bounds, best.least)
            if found is not None:
                best.add((plan.attention, plan.experts), found)
        return best.ranked()

    def _best_rows(self, plan: Deployment, bounds: Bounds, floor: float) -> Found | None:
        """The best number of sequences for this plan, where its value exceeds `floor`."""

        def seconds(rows: int) -> float:
            return self.predictor.seconds(replace(plan, rows=rows), self.target)

        if self.objective is Objective.LATENCY:
            took = seconds(1)
            return Found(1 / took, plan) if took < inf and 1 / took > floor else None
        attention = plan.attention
        # Sequences a micro-batch and second -> tokens a second and unit.
        a_row = plan.micro_batches * attention.count / spent(plan, self.objective)
        rates = bounds.attention_rates(attention.device, attention.tp)
        grid = self.space.rows[: len(rates)]
        possible = bisect_left(grid, True, key=lambda rows: seconds(rows) == inf)
        found = None
        for rows, rate in zip(grid[possible - 1 :: -1], rates[possible - 1 :: -1], strict=True):
            if a_row / plan.micro_batches * rate * SLACK <= floor:
                continue
            sized = replace(plan, rows=rows)
            if any(a_row * rows * SLACK <= floor * least for least in self._least_seconds(sized)):
                continue
            value = a_row * rows / self.predictor.pace(sized).seconds
            if value > floor:
                floor, found = value, Found(value, sized)
        return found

    def _least_seconds(self, plan: Deployment) -> Iterator[float]:
        """That a step takes at least: what either role computes alone in all micro-batches, and
        both in one."""
        attention, experts, m = plan.attention, plan.experts, plan.micro_batches
        sent_to = 0 if plan.together else experts.count
        own = self.predictor.attention_seconds(attention, plan.rows, sent_to)
        yield m * own
        tokens = self.predictor.step(plan.rows).rows * attention.count
        theirs = self.predictor.expert_seconds(experts, tokens)
        yield max(m * theirs, own + theirs)
