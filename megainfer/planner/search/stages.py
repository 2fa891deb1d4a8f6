"""How long the stages of one micro-batch take, and what that makes of a step."""

import math
from dataclasses import dataclass, replace

from megainfer.planner.costs.stage_time import Time
from megainfer.planner.search.costs import RoadCosts


@dataclass(frozen=True, slots=True)
class Stages:
    """Of one micro-batch: T_a, T_e and T_c both ways of one MoE layer, and what an attention node
    does once a step (embedding, dense layers, head, sampling)."""

    attention: Time
    experts: Time
    dispatch: Time
    combine: Time
    outside: Time

    def attention_seconds(self, layers: int) -> float:
        """That its attention node computes in one step."""
        return layers * self.attention.total + self.outside.total

    def round_trip(self, layers: int) -> float:
        """That the step takes where it never waits: the sum of all stages."""
        layer = (self.attention, self.experts, self.dispatch, self.combine)
        return layers * sum(stage.total for stage in layer) + self.outside.total

    def with_waking(
        self, road: RoadCosts, rows: float, layers: int, micro_batches: int
    ) -> "Stages":
        """The same where messages wake those who have gone to sleep, in a steady state of so many
        micro-batches like these. rows: of one attention node, that `road` takes."""
        if road.awake_seconds == math.inf:
            return self
        attention, experts = self.waits(layers, micro_batches)
        return replace(
            self,
            dispatch=road.dispatch(rows, asleep=experts > road.awake_seconds),
            combine=road.combine(rows, asleep=attention > road.awake_seconds),
        )

    def waits(self, layers: int, micro_batches: int) -> tuple[float, float]:
        """For how long an attention node waits for a reply, and an expert node for a dispatch, on
        average, where so many micro-batches like these take turns. Between two steps experts wait
        for longer, which doesn't count."""
        pace = Pace.apart(self, self, layers, micro_batches)
        between = micro_batches * self.outside.total
        messages = layers * micro_batches
        return (
            (pace.seconds - pace.attention) / messages,
            max(0.0, pace.seconds - between - pace.experts) / messages,
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """What sets the seconds of a step: the largest of these does, as in `formulas.layer_period`.

    attention, experts: seconds for which these nodes compute in all micro-batches' steps. network:
    for which one direction is in use. round_trip: of one micro-batch that never waits.
    """

    attention: float
    experts: float
    network: float
    round_trip: float

    @classmethod
    def apart(cls, own: Stages, others: Stages, layers: int, micro_batches: int) -> "Pace":
        """Of a micro-batch with stages `own` that takes turns with m - 1 like `others`."""
        more = micro_batches - 1

        def way(stages: Stages) -> float:
            return layers * max(stages.dispatch.total, stages.combine.total)

        return cls(
            own.attention_seconds(layers) + more * others.attention_seconds(layers),
            layers * (own.experts.total + more * others.experts.total),
            way(own) + more * way(others),
            own.round_trip(layers),
        )

    @classmethod
    def together(cls, stages: Stages, layers: int) -> "Pace":
        """Of one batch whose stages follow each other on the same devices."""
        exchanged = layers * (stages.dispatch.total + stages.combine.total)
        return cls(
            stages.attention_seconds(layers),
            layers * stages.experts.total,
            exchanged,
            stages.round_trip(layers),
        )

    @property
    def seconds(self) -> float:
        """Between two tokens of a sequence."""
        return max(self.attention, self.experts, self.network, self.round_trip)

    def idle(self) -> tuple[float, float]:
        """The share of time for which attention nodes and expert nodes wait."""
        return 1 - self.attention / self.seconds, 1 - self.experts / self.seconds
