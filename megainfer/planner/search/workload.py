"""What is asked of a deployment: the requests' lengths, and the latencies to keep."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from megainfer.errors import ConfigError
from megainfer.planner.costs.step import Contexts, Step


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

    @property
    def beside_speed(self) -> "Objective":
        """What to trade a sequence's speed for; of latency, which is that speed, by device."""
        return Objective.GPU if self is Objective.LATENCY else self


@dataclass(frozen=True, slots=True)
class Workload:
    """A typical request: so many tokens of prompt, so many of answer (means or medians).

    chunk: tokens of one prompt that a step computes at most.
    """

    input_tokens: int
    output_tokens: int
    prefill: Prefill = Prefill.BESIDE
    chunk: int = 512

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
        """The relative standard deviation of that between sequences at all places of such an
        answer, spread evenly."""
        contexts = self.step(1).contexts
        return (contexts.last - contexts.first) / math.sqrt(12) / contexts.mean

    def step(self, rows: float) -> Step:
        """The mean step of so many sequences that decode."""
        beside = self.prefill is Prefill.BESIDE
        step = Step.steady(rows, self.input_tokens, self.output_tokens, beside)
        chunk = float(min(self.chunk, self.input_tokens))
        return replace(step, chunk=chunk) if beside else step

    def prompt_step(self, rows: float) -> Step:
        """The same where a whole chunk of a prompt is computed beside them."""
        step = self.step(rows)
        return replace(
            step,
            prefill_rows=max(step.prefill_rows, step.chunk),
            prefill_contexts=Contexts(1, self.input_tokens),
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
