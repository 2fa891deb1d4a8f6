"""The best deployments with attention and experts apart: branch and bound."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count, product
from math import inf, isqrt

from megainfer.planner.search.bounds import SLACK, Bounds
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
class Branch:
    """A family's plans with `first` to `last` attention nodes; micro_batches None: and any m, and
    any of the family's spare experts."""

    family: Family
    micro_batches: int | None
    first: int
    last: int

    @property
    def plan(self) -> Deployment | None:
        """The only one, but for its number of sequences; None where there are several."""
        if self.micro_batches is None or self.first < self.last:
            return None
        return self.family.deployment(self.first, self.micro_batches, 1)

    def parts(self, micro_batches: Iterable[int]) -> "Iterator[Branch]":
        """Divided by spare experts and m, then into halves, as ratios go."""
        if self.micro_batches is None:
            for family, m in product(self.family.split(), micro_batches):
                yield replace(self, family=family, micro_batches=m)
        else:
            middle = isqrt(self.first * self.last)
            yield replace(self, last=middle)
            yield replace(self, first=middle + 1)


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

        Branches wait in the order of what they could bring at most; the first is divided, or, where
        only one plan is left, computed. What could at most bring less than is already there is left
        out, and nothing else.
        """
        bounds = Bounds(self.predictor, self.target, self.objective, self.space)
        best, order = Best(top), count()
        waiting = list[tuple[float, int, Branch]]()  # (-bound, order, …)

        def wait(branch: Branch, within: float) -> None:
            """within: what holds for all that it is a part of."""
            family, m = branch.family, branch.micro_batches
            bound = min(within, bounds.of(family, m, branch.first, branch.last))
            if bound > best.floor(branch.family.key):
                heappush(waiting, (-bound, next(order), branch))

        for family in families(self.space, self.inventory, self.predictor.costs):
            wait(Branch(family, None, 1, self._most_nodes(family)), inf)
        while waiting and -waiting[0][0] > best.least:
            bound, _, branch = heappop(waiting)
            floor = best.floor(branch.family.key)
            if -bound <= floor:
                continue
            if (plan := branch.plan) is None:
                for part in branch.parts(self._micro_batches()):
                    wait(part, -bound)
            elif (found := self._best_rows(plan, bounds, floor)) is not None:
                best.add(branch.family.key, found)
        return tuple(self._calmer(plan) for plan in best.ranked())

    def _calmer(self, plan: Deployment) -> Deployment:
        """With no more micro-batches than bring as much: tokens then come sooner."""

        def rate(plan: Deployment) -> float:
            return plan.batch / self.predictor.pace(plan).seconds

        most = rate(plan)
        fewer = (replace(plan, micro_batches=m) for m in range(1, plan.micro_batches))
        return next((plan for plan in fewer if rate(plan) * SLACK >= most), plan)

    def _micro_batches(self) -> range:
        most = 1 if self.objective is Objective.LATENCY else self.space.most_micro_batches
        return range(1, most + 1)

    def _most_nodes(self, family: Family) -> int:
        if self.objective is Objective.LATENCY:
            return 1  # nothing is faster with more of them
        return family.most_nodes(self.inventory)

    def together(self, top: int) -> tuple[Deployment, ...]:
        """The best colocated plans, each with its best batch."""
        bounds = Bounds(self.predictor, self.target, self.objective, self.space)
        baselines = colocated(self.space, self.inventory, self.predictor.costs)
        bounded = sorted(
            ((bounds.together(plan), plan) for plan in baselines),
            key=lambda pair: pair[0],
            reverse=True,
        )
        best = Best(top)
        for bound, plan in bounded:
            if bound <= best.least:
                break
            key = (plan.attention, replace(plan.experts, spares=0))
            found = self._best_rows(plan, bounds, best.floor(key))
            if found is not None:
                best.add(key, found)
        return best.ranked()

    def _best_rows(self, plan: Deployment, bounds: Bounds, floor: float) -> Found | None:
        """The best number of sequences for this plan, where its value exceeds `floor`."""
        attention = plan.attention
        # Sequences a micro-batch and second -> tokens a second and unit.
        a_row = 1.0
        if self.objective is not Objective.LATENCY:
            a_row = plan.micro_batches * attention.count / plan.spent(self.objective)
        rates = bounds.attention_rates(attention.device, attention.tp, plan.together)
        grid = bounds.grid[: len(rates)]
        found = None
        # (first, last) of ranges of the grid that may hold something better. Steps with more rows
        # never take less time or memory, so that a range's best value is below its last rows by its
        # first rows' seconds, and all of it is impossible where its first rows are.
        ranges = [(0, len(grid) - 1)] if grid else []
        while ranges:
            first, last = ranges.pop()
            most = a_row * grid[last] * SLACK
            if a_row / plan.micro_batches * max(rates[first : last + 1]) * SLACK <= floor:
                continue
            sized = replace(plan, rows=grid[first])
            if any(most <= floor * least for least in self._least_seconds(sized)):
                continue
            took = self.predictor.pace(sized).seconds
            if took > self.target.tpot_seconds or most <= floor * took:
                continue
            value = a_row * grid[first] / took
            if value > floor:
                if self.predictor.limit(sized, self.target) is not None:
                    continue
                floor, found = value, Found(value, sized)
            if last > first:
                middle = (first + 1 + last) // 2
                ranges.append((first + 1, middle))
                if middle < last:
                    ranges.append((middle + 1, last))  # looked at first
        return found

    def _least_seconds(self, plan: Deployment) -> Iterator[float]:
        """That a step takes at least: what either role computes alone in all micro-batches, and
        both in one."""
        attention, experts, m = plan.attention, plan.experts, plan.micro_batches
        sent_to = None if plan.together else experts
        own = self.predictor.attention_seconds(attention, plan.rows, sent_to)
        yield m * own
        tokens = self.predictor.step(plan.rows).rows * attention.count
        theirs = self.predictor.expert_seconds(experts, tokens)
        yield max(m * theirs, own + theirs)
