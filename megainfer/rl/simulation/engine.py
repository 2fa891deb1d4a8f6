"""How long nodes take to draw, as the planner predicts it for any number of answers."""

import math
from dataclasses import dataclass, field
from typing import Protocol

from megainfer.planner.costs.step import Contexts, Step
from megainfer.planner.search.costs import Costs
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.predictor import Predictor
from megainfer.planner.search.stages import Pace
from megainfer.planner.search.workload import Workload

FINENESS = 16
"""Numbers of rows and contexts that are told apart in an octave: costs are looked up by them."""
CHUNK_ROWS = 2048
"""Rows of a step that computes contexts alone, on each attention node."""


class DecodeTimes(Protocol):
    """Who draws, as time sees it."""

    @property
    def places(self) -> int:
        """Answers that can be drawn at a time."""

    def decode_seconds(self, running: float, context: float) -> float:
        """Of a step that adds a token to each of so many answers, which have so many tokens."""

    def prefill_seconds(self, tokens: float, context: float) -> float:
        """To compute the keys and values of so many tokens, in texts of so many."""


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """All replicas of a deployment, with answers spread evenly over them.

    workload: what it was planned for, of which here only the spread of contexts between nodes
    counts.
    """

    costs: Costs
    deployment: Deployment
    workload: Workload
    _seconds: dict[tuple[float, float], float] = field(default_factory=dict, repr=False)

    @property
    def places(self) -> int:
        """As many as their memory holds, as it was planned."""
        return self.deployment.replicas * self.deployment.batch

    def decode_seconds(self, running: float, context: float) -> float:
        """Of the step between two tokens."""
        key = _near(running / self.deployment.replicas), _near(context)
        if key not in self._seconds:
            rows, micro_batches = self._shared(key[0])
            step = Step(rows, Contexts.at(max(1.0, key[1])))
            self._seconds[key] = self._pace(step, micro_batches).seconds
        return self._seconds[key]

    def prefill_seconds(self, tokens: float, context: float) -> float:
        """In steps of nothing else, of full chunks."""
        if not tokens:
            return 0.0
        seen = Contexts(1, max(1.0, context))
        chunk = min(float(CHUNK_ROWS), seen.last)
        step = Step(0.0, Contexts.at(1), float(CHUNK_ROWS), seen, chunk)
        micro_batches = self.deployment.micro_batches
        seconds = self._pace(step, micro_batches).seconds
        at_once = CHUNK_ROWS * micro_batches * self.deployment.attention.count
        return seconds * tokens / (at_once * self.deployment.replicas)

    def _shared(self, running: float) -> tuple[float, int]:
        """Rows of a micro-batch, and how many there are: few answers leave some empty."""
        own = self.deployment
        nodes = own.attention.count
        micro_batches = max(1, min(own.micro_batches, math.ceil(running / nodes)))
        return max(1.0, running / (nodes * micro_batches)), micro_batches

    def _pace(self, step: Step, micro_batches: int) -> Pace:
        # A predictor remembers steps by their rows; contexts differ here, so each has its own.
        predictor = Predictor(self.costs, self.workload)
        stages = predictor.stages(self.deployment, step, step)
        if self.deployment.together:
            return Pace.together(stages, predictor.layers)
        return Pace.apart(stages, stages, predictor.layers, micro_batches)


@dataclass(frozen=True, slots=True)
class FlatEngine:
    """As another engine, but a step takes as long however few answers are left: what a figure
    assumes that draws rollouts as bars."""

    engine: DecodeTimes

    @property
    def places(self) -> int:
        return self.engine.places

    def decode_seconds(self, running: float, context: float) -> float:
        """As with all places taken."""
        return self.engine.decode_seconds(self.places, context)

    def prefill_seconds(self, tokens: float, context: float) -> float:
        return self.engine.prefill_seconds(tokens, context)


@dataclass(frozen=True, slots=True)
class LinearEngine:
    """As another engine, but a step takes time in proportion to its answers: nothing is gained by
    drawing many together."""

    engine: DecodeTimes

    @property
    def places(self) -> int:
        return self.engine.places

    def decode_seconds(self, running: float, context: float) -> float:
        """The share that its answers have of a full step."""
        return self.engine.decode_seconds(self.places, context) * running / self.places

    def prefill_seconds(self, tokens: float, context: float) -> float:
        return self.engine.prefill_seconds(tokens, context)


def _near(value: float) -> float:
    """The nearest of FINENESS values an octave."""
    return 2 ** (round(math.log2(value) * FINENESS) / FINENESS)
