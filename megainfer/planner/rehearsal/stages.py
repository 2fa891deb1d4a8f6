"""A deployment's predicted stage times, as the simulator asks for them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import ALONE, Contexts, Step
from megainfer.simulator.work import Work


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a stage that depends on the whole step. chunk: of prompts, in tokens."""

    time: Callable[[Step], Time]
    chunk: int
    _known: dict[Work, float] = field(default_factory=dict, compare=False, repr=False)

    def of_work(self, work: Work) -> float:
        if work not in self._known:
            self._known[work] = self.time(self._step(work)).total
        return self._known[work]

    def _step(self, work: Work) -> Step:
        decoding = work.rows - work.prompt_rows
        chunk = max(1, min(self.chunk, work.prompt_rows))
        # A chunk's rows see one position more each.
        mean = work.pairs / work.prompt_rows if work.prompt_rows else 1.0
        reach = min((chunk - 1) / 2, mean - 1)
        return Step(
            decoding,
            Contexts.at(work.context / decoding if decoding else 1),
            work.prompt_rows,
            Contexts(max(1.0, mean - reach), mean + reach),
            chunk,
            work.tokens - decoding,
        )


def rows_alone(rows: float) -> Step:
    """For what depends on nothing else: experts, and what is exchanged."""
    return Step(rows, ALONE)


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Seconds of a stage that depends on rows. weight: so many rows each simulated one stands
    for."""

    time: Callable[[float], Time]
    weight: float = 1.0
    _known: dict[int, float] = field(default_factory=dict, compare=False, repr=False)

    def of(self, rows: int) -> float:
        if rows not in self._known:
            self._known[rows] = self.time(self.weight * rows).total
        return self._known[rows]
