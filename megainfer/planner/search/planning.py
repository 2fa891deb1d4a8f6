"""From what there is and what is wanted to the plans: the search's front."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf

from megainfer.errors import ConfigError
from megainfer.planner.search.best import Search
from megainfer.planner.search.costs import Costs
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.space import Space, colocated, families
from megainfer.planner.search.verdict import Verdict, judge
from megainfer.planner.search.workload import Objective, Target, Workload

GB = 1e9


@dataclass(frozen=True, slots=True)
class Answer:
    """Plans best first, each kind on its own, and what they say of each other."""

    apart: tuple[Prediction, ...]
    together: tuple[Prediction, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans one model on one inventory. Plans for several targets share what was computed."""

    predictor: Predictor
    inventory: Inventory
    space: Space = field(default_factory=Space)

    @classmethod
    def of(
        cls, costs: Costs, inventory: Inventory, workload: Workload, space: Space | None = None
    ) -> "Planner":
        return cls(Predictor(costs, workload), inventory, space or Space())

    def plan(self, target: Target, objective: Objective = Objective.GPU, top: int = 5) -> Answer:
        """The `top` best plans of each kind.

        Raises ConfigError where no plan keeps the target, which says the nearest, and where the
        model fits nowhere, which says by how much.
        """
        apart = self.best(False, target, objective, top)
        together = self.best(True, target, objective, top)
        if not (apart or together):
            raise self._impossible(target)
        verdict = judge(
            apart[0] if apart else None,
            together[0] if together else None,
            objective,
            self.predictor.workload,
        )
        return Answer(apart, together, verdict)

    def best(
        self, together: bool, target: Target, objective: Objective, top: int
    ) -> tuple[Prediction, ...]:
        """The `top` best plans of one kind, which may be none."""
        search = Search(self.predictor, self.inventory, target, objective, self.space)
        found = search.together(top) if together else search.apart(top)
        return tuple(self._prediction(deployment, target) for deployment in found)

    def front(self, objective: Objective, points: int = 12, slowest: float = 0.5) -> "Front":
        """What can be had at each speed of a sequence: the best plans of each kind for `points`
        limits on the time between tokens, from the shortest possible to `slowest` seconds, without
        those that another beats in both."""
        objective = objective.beside_speed
        fastest = self._nearest(lambda plan: self.predictor.pace(plan).seconds)
        shortest = inf if fastest is None else self.predictor.pace(fastest).seconds
        if shortest == inf:
            raise self._impossible(Target(inf))
        ratio = max(slowest / shortest, 1.0) ** (1 / (points - 1))
        targets = [Target(shortest * ratio**i * (1 + 1e-9)) for i in range(points)]
        apart, together = list[Prediction](), list[Prediction]()
        for target in targets:
            apart += self.best(False, target, objective, 1)
            together += self.best(True, target, objective, 1)
        return Front(_undominated(apart, objective), _undominated(together, objective))

    def _prediction(self, deployment: Deployment, target: Target) -> Prediction:
        larger = next((rows for rows in self.space.rows if rows > deployment.rows), None)
        limit = None
        if larger is not None:
            limit = self.predictor.limit(replace(deployment, rows=larger), target)
        replicas = self.inventory.instances(deployment)
        return self.predictor.prediction(replace(deployment, replicas=replicas), limit)

    def _impossible(self, target: Target) -> ConfigError:
        """Why there is no plan."""
        if (nearest := self._nearest(lambda plan: self.predictor.pace(plan).seconds)) is None:
            return self._too_large()
        seconds = self.predictor.pace(nearest).seconds
        if seconds > target.tpot_seconds:
            return ConfigError(
                f"no plan keeps {target.tpot_seconds * 1e3:g} ms between tokens; the nearest has "
                f"{seconds * 1e3:.3g} ms: {nearest.describe()}"
            )
        assert target.ttft_seconds is not None
        only = Target(target.tpot_seconds)
        first = self._nearest(
            lambda plan: (
                inf
                if self.predictor.limit(plan, only) is not None
                else self.predictor.ttft_seconds(plan) or inf
            )
        )
        assert first is not None
        ttft = self.predictor.ttft_seconds(first)
        return ConfigError(
            f"no plan keeps {target.ttft_seconds * 1e3:g} ms to the first token and "
            f"{target.tpot_seconds * 1e3:g} ms between tokens; the nearest has "
            f"{(ttft or inf) * 1e3:.3g} ms to the first: {first.describe()}"
        )

    def _smallest(self) -> Iterator[Deployment]:
        """Of each kind and family, the plan with least to do: one sequence, nothing in parallel."""
        costs, space = self.predictor.costs, replace(self.space, spares=(0,))
        for family in families(space, self.inventory, costs, fitting=False):
            yield family.deployment(1, 1, 1)
        yield from colocated(space, self.inventory, costs)

    def _nearest(self, seconds: Callable[[Deployment], float]) -> Deployment | None:
        """The smallest plan that fits and takes least; None where none fits."""
        fitting = (plan for plan in self._smallest() if self.predictor.fits(plan))
        return min(fitting, key=seconds, default=None)

    def _too_large(self) -> ConfigError:
        """Of the plans that don't fit, the one that lacks least."""

        def lacks(plan: Deployment) -> float:
            return sum(
                role.devices * max(0.0, needs.total - role.device.memory_bytes)
                for role, needs in zip(plan.roles, self.predictor.memory(plan), strict=True)
            )

        nearest = min(self._smallest(), key=lacks, default=None)
        if nearest is None:
            sizes = ", ".join(map(str, self.space.tps))
            return ConfigError(
                f"no node of {sizes} devices can be made of {self.inventory.describe()}: there are "
                "too few, their links join fewer, or the model has fewer heads; allow smaller "
                "nodes, such as --tp 1"
            )
        needs = [
            f"{needs.total / GB:.1f} GB on each {role.device.name}, which has "
            f"{role.device.memory_bytes / GB:.1f}"
            for role, needs in zip(nearest.roles, self.predictor.memory(nearest), strict=True)
        ]
        return ConfigError(
            f"the model fits nowhere on {self.inventory.describe()}: {lacks(nearest) / GB:.1f} GB "
            f"are missing in all at the nearest, {nearest.describe()}, with {' and '.join(needs)}; "
            "give more or larger devices, or weights with fewer bits"
        )


@dataclass(frozen=True, slots=True)
class Front:
    """Predictions by rising speed of a sequence, of which no other has more of both that speed and
    what was asked for."""

    apart: tuple[Prediction, ...]
    together: tuple[Prediction, ...]


def _undominated(plans: list[Prediction], objective: Objective) -> tuple[Prediction, ...]:
    kept = list[Prediction]()
    for plan in sorted(plans, key=lambda plan: (-plan.per_user, -plan.value(objective))):
        if not kept or plan.value(objective) > kept[-1].value(objective):
            kept.append(plan)
    return tuple(reversed(kept))
