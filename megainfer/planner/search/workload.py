"""What is asked of a deployment: the requests' lengths, and the latencies to keep."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from megainfer.errors import ConfigError
from megainfer.planner.costs.step import Contexts, Step
from megainfer.planner.hardware import Device
from megainfer.simulator.lengths import Spread

ALIKE = Spread()


class Prefill(StrEnum):
    """Where prompts are computed: in chunks on the nodes that decode, or on machines of their own,
    which this plan leaves out as the paper does."""

    BESIDE = "beside"
    ELSEWHERE = "elsewhere"


class Objective(StrEnum):
    """What the best plan has most of; of latency, least."""

    GPU = "gpu"  # tokens a second and device
    COST = "cost"  # tokens a second and unit of price
    WATT = "watt"  # tokens a second and watt, that is, tokens a joule
    LATENCY = "latency"  # seconds between tokens

    def units(self, device: Device) -> float:
        """What one such device counts for; with latency nothing is counted."""
        match self:
            case Objective.GPU:
                return 1.0
            case Objective.COST:
                return device.price
            case Objective.WATT:
                return device.watts
            case Objective.LATENCY:
                return 0.0

    @property
    def beside_speed(self) -> "Objective":
        """What to trade a sequence's speed for; of latency, which is that speed, by device."""
        return Objective.GPU if self is Objective.LATENCY else self


CERTAIN = 2.33
"""Standard deviations above the mean that a normal variable exceeds once in a hundred times."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests: so many tokens of prompt, so many of answer, both means. spread: how much they
    differ, independently of each other. chunk: tokens of one prompt that a step computes at most.
    """

    input_tokens: int
    output_tokens: int
    prefill: Prefill = Prefill.BESIDE
    chunk: int = 512
    spread: Spread = ALIKE

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "chunk"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}, but must be at least 1")

    @property
    def context(self) -> float:
        """Mean tokens that a sequence has in the cache while it decodes."""
        return self.step(1).contexts.mean

    @property
    def context_deviation(self) -> float:
        """The relative standard deviation of that between sequences: of their prompts, and of their
        places in answers that are met as often as they are long.

        A place is evenly spread over its answer of n tokens, so that its mean is E[n^2] / 2 E[n],
        its square's E[n^3] / 3 E[n]; the twelfth is what whole numbers have less.
        """
        spread = self.spread
        prompts = self.input_tokens**2 * (spread.input_square - 1)
        places = spread.output_cube / 3 - spread.output_square**2 / 4
        variance = prompts + self._decoded**2 * places - 1 / 12
        return math.sqrt(max(0.0, variance)) / self.context

    def cache_tokens(self, sequences: float) -> float:
        """Tokens of the cache that so many sequences need: their mean, and as much above it as they
        exceed one moment in a hundred, their sum being near to normal. Where all are as long, no
        more than all of them at their ends."""
        mean = sequences * self.context
        needed = mean * (1 + CERTAIN * self.context_deviation / math.sqrt(max(sequences, 1.0)))
        if self.spread != ALIKE:
            return needed
        return min(needed, sequences * self.step(1).contexts.last)

    @property
    def _decoded(self) -> int:
        """Tokens of an answer that take a step: the first comes of the prompt's last."""
        return max(1, self.output_tokens - 1)

    def step(self, rows: float) -> Step:
        """The mean step of so many sequences that decode. Contexts have the mean that they have
        where long answers, and in prompts the rows of long ones, are met in proportion; they stand
        for it evenly spread, also where a window or a chunk sees a part of them."""
        beside, spread = self.prefill is Prefill.BESIDE, self.spread
        step = Step.steady(rows, self.input_tokens, self.output_tokens, beside)
        first = step.contexts.first
        last = max(first, self.input_tokens + self._decoded * spread.output_square)
        step = replace(step, contexts=Contexts(first, last))
        if not beside:
            return step
        return replace(
            step,
            chunk=float(min(self.chunk, self.input_tokens)),
            prefill_contexts=self._prompt_contexts,
        )

    @property
    def _prompt_contexts(self) -> Contexts:
        return Contexts(1, max(1.0, self.input_tokens * self.spread.input_square))

    def prompt_step(self, rows: float) -> Step:
        """The same where a whole chunk of a prompt is computed beside them."""
        step = self.step(rows)
        return replace(
            step,
            prefill_rows=max(step.prefill_rows, step.chunk),
            prefill_contexts=self._prompt_contexts,
            prompts=max(step.prompts, 1.0),
        )

    @property
    def chunks(self) -> int:
        """Steps that a prompt takes."""
        return -(-self.input_tokens // self.chunk)

    def most_rows(self, rows: float) -> int:
        """Tokens of the largest step with so many sequences."""
        of = self.prompt_step if self.prefill is Prefill.BESIDE else self.step
        return math.ceil(of(rows).rows)


@dataclass(frozen=True, slots=True)
class Target:
    """Limits on mean seconds between tokens, and on mean seconds to the first."""

    tpot_seconds: float
    ttft_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("tpot_seconds", "ttft_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:  # as NaN isn't
                raise ConfigError(f"{name} is {value}, but must be above 0 seconds")
