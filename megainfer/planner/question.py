"""A question to the planner, and its answer after the simulator has had a look."""

import math
from dataclasses import dataclass, replace

from megainfer.compute.selection import Precision
from megainfer.planner.rehearsal import Rehearsal, Traffic, rehearse
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.planning import Answer, Front, Planner
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.verdict import Verdict, judge
from megainfer.planner.search.workload import Objective, Target, Workload

TOLERANCE = 1.005
"""A simulated time may exceed its limit by as much: its own noise."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Plans of one kind in the order of what the simulator made of the first of them. rehearsals:
    of these, in that order. target: the limits that they were searched for, tighter than what was
    asked where the simulator found more time between tokens than was predicted."""

    plans: tuple[Prediction, ...]
    rehearsals: tuple[Rehearsal, ...]
    target: Target

    def rehearsal(self, place: int) -> Rehearsal | None:
        """Of a plan; None where it wasn't tried."""
        return self.rehearsals[place] if place < len(self.rehearsals) else None

    def value(self, objective: Objective) -> float:
        """Of the first plan, as it was simulated; of a plan that wasn't, as predicted."""
        first, value = self.rehearsal(0), self.plans[0].value(objective)
        return value if first is None else corrected(value, self.plans[0], first)


@dataclass(frozen=True, slots=True)
class Planned:
    """What was asked, and what was found of each kind. predicted: how the best of both compare by
    the closed form. verdict: the same where the simulator has tried them."""

    model: str
    precision: Precision
    workload: Workload
    inventory: Inventory
    target: Target
    objective: Objective
    apart: Tried
    together: Tried
    predicted: Verdict
    verdict: Verdict

    @property
    def kinds(self) -> tuple[Tried, Tried]:
        """Apart, and colocated."""
        return self.apart, self.together

    @property
    def best(self) -> Prediction:
        """Of the kind that won, the first."""
        ratio = self.verdict.ratio
        won = ratio >= 1 if ratio is not None else bool(self.apart.plans)
        return (self.apart if won else self.together).plans[0]

    @property
    def simulated_ratio(self) -> float | None:
        """The verdict's, where both kinds were tried and make something."""
        return None if self.verdict is self.predicted else self.verdict.ratio


@dataclass(frozen=True, slots=True)
class Question:
    """What model, under which name and in which precision; what there is, and what is wanted."""

    model: str
    precision: Precision
    planner: Planner
    target: Target
    objective: Objective

    def planned(self, top: int, tries: int, traffic: Traffic, records: bool = False) -> Planned:
        """The `top` best plans of each kind, of which the first `tries` are tried. Those are told
        in the order of what the simulator made of them, and the verdict is by that too.

        Where the simulated time between tokens exceeds the limit, plans are searched for once more,
        with a limit that is tighter by as much; where nothing was made, none would help. Raises
        ConfigError as `Planner.plan` does.
        """
        answer = self.planner.plan(self.target, self.objective, top)
        trial = _Trial(self, top, tries, traffic, records)
        apart, together = trial.of(answer.apart, False), trial.of(answer.together, True)
        return Planned(
            self.model,
            self.precision,
            self.planner.predictor.workload,
            self.planner.inventory,
            self.target,
            self.objective,
            apart,
            together,
            answer.verdict,
            self._verdict(answer, apart, together),
        )

    def front(self) -> Front:
        """What can be had at each speed of a user's answer."""
        return self.planner.front(self.objective)

    def _verdict(self, answer: Answer, apart: Tried, together: Tried) -> Verdict:
        if not (apart.rehearsals and together.rehearsals):
            return answer.verdict
        values = apart.value(self.objective), together.value(self.objective)
        if not all(values):
            return answer.verdict
        best, ratio = (apart.plans[0], together.plans[0]), values[0] / values[1]
        return judge(*best, self.objective, self.planner.predictor.workload, ratio)


@dataclass(frozen=True, slots=True)
class _Trial:
    """How plans are tried."""

    question: Question
    top: int
    tries: int
    traffic: Traffic
    records: bool

    def of(self, plans: tuple[Prediction, ...], together: bool) -> Tried:
        """These plans, or those for a tighter limit where there are such."""
        question, target = self.question, self.question.target
        found = self._tried(plans, target)
        first = found.rehearsal(0)
        if first is None or not target.tpot_seconds * TOLERANCE < first.tpot_seconds < math.inf:
            return found
        ratio = found.plans[0].tpot_seconds / first.tpot_seconds
        tighter = replace(target, tpot_seconds=target.tpot_seconds * ratio)
        again = question.planner.best(together, tighter, question.objective, self.top)
        return self._tried(again, tighter) if again else found

    def _tried(self, plans: tuple[Prediction, ...], target: Target) -> Tried:
        predictor, objective = self.question.planner.predictor, self.question.objective
        pairs = [
            (plan, rehearse(predictor.costs, plan, predictor.workload, self.traffic, self.records))
            for plan in plans[: self.tries]
        ]
        pairs.sort(key=lambda pair: corrected(pair[0].value(objective), *pair), reverse=True)
        ordered = (*(plan for plan, _ in pairs), *plans[self.tries :])
        return Tried(ordered, tuple(tried for _, tried in pairs), target)


def corrected(value: float, plan: Prediction, tried: Rehearsal) -> float:
    """A predicted value in the proportion of simulated to predicted throughput."""
    return value * tried.tokens_per_second / plan.instance_tokens_per_second
