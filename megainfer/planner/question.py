"""A question to the planner, and its answer after the simulator has had a look."""

import math
from dataclasses import dataclass, replace

from megainfer.compute.selection import Precision
from megainfer.errors import ConfigError
from megainfer.planner.rehearsal import Rehearsal, Traffic, rehearse
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.planning import Answer, Front, Planner
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.verdict import judge
from megainfer.planner.search.workload import Objective, Target, Workload

TOLERANCE = 1.005
"""A simulated time may exceed its limit by as much: its own noise."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What was asked, and what was found. rehearsals: of the first plans apart, in their order.
    planned_for: limits that plans were searched for, tighter than `target` where the simulator
    found more time between tokens than was predicted."""

    model: str
    precision: Precision
    workload: Workload
    inventory: Inventory
    target: Target
    objective: Objective
    answer: Answer
    rehearsals: tuple[Rehearsal, ...]
    planned_for: Target

    def rehearsal(self, place: int) -> Rehearsal | None:
        """Of a plan apart; None where it wasn't tried."""
        return self.rehearsals[place] if place < len(self.rehearsals) else None

    @property
    def best(self) -> Prediction:
        """Of the kind that won, the first."""
        answer, ratio = self.answer, self.answer.verdict.ratio
        apart = bool(answer.apart) and (ratio is None or ratio >= 1 or not answer.together)
        return answer.apart[0] if apart else answer.together[0]

    @property
    def simulated_ratio(self) -> float | None:
        """The verdict's, with the throughput that the simulator gave the best plan apart."""
        ratio = self.answer.verdict.ratio
        if ratio is None or not self.rehearsals:
            return None
        return ratio * corrected(1.0, self.answer.apart[0], self.rehearsals[0])


@dataclass(frozen=True, slots=True)
class Question:
    """What model, under which name and in which precision; what there is, and what is wanted."""

    model: str
    precision: Precision
    planner: Planner
    target: Target
    objective: Objective

    def planned(self, top: int, tries: int, traffic: Traffic, records: bool = False) -> Planned:
        """The `top` best plans of each kind, of which the first `tries` apart are tried. Those are
        told in the order of what the simulator made of them.

        Where the simulated time between tokens exceeds the limit, plans are searched for once more,
        with a limit that is tighter by as much; where nothing was made, none would help. Raises
        ConfigError as `Planner.plan` does.
        """
        answer = self.planner.plan(self.target, self.objective, top)
        found = self._tried(answer, self.target, tries, traffic, records)
        if found.rehearsals and self._most < found.rehearsals[0].tpot_seconds < math.inf:
            tighter = self._tightened(found.answer.apart[0], found.rehearsals[0])
            try:
                again = self.planner.plan(tighter, self.objective, top)
            except ConfigError:
                return found
            if again.apart:
                kept = replace(again, together=answer.together)
                return self._tried(kept, tighter, tries, traffic, records)
        return found

    def front(self) -> Front:
        """What can be had at each speed of a user's answer."""
        return self.planner.front(self.objective)

    @property
    def _most(self) -> float:
        return self.target.tpot_seconds * TOLERANCE

    def _tightened(self, plan: Prediction, tried: Rehearsal) -> Target:
        ratio = plan.tpot_seconds / tried.tpot_seconds
        return replace(self.target, tpot_seconds=self.target.tpot_seconds * ratio)

    def _tried(
        self, answer: Answer, target: Target, tries: int, traffic: Traffic, records: bool
    ) -> Planned:
        predictor = self.planner.predictor
        pairs = [
            (plan, rehearse(predictor.costs, plan, predictor.workload, traffic, records))
            for plan in answer.apart[:tries]
        ]
        pairs.sort(key=lambda pair: corrected(pair[0].value(self.objective), *pair), reverse=True)
        apart = (*(plan for plan, _ in pairs), *answer.apart[tries:])
        verdict = judge(
            apart[0] if apart else None,
            answer.together[0] if answer.together else None,
            self.objective,
            predictor.workload,
        )
        return Planned(
            self.model,
            self.precision,
            predictor.workload,
            self.planner.inventory,
            self.target,
            self.objective,
            replace(answer, apart=apart, verdict=verdict),
            tuple(tried for _, tried in pairs),
            target,
        )


def corrected(value: float, plan: Prediction, tried: Rehearsal) -> float:
    """A predicted value in the proportion of simulated to predicted throughput."""
    return value * tried.tokens_per_second / plan.instance_tokens_per_second
