"""What is asked of a deployment: the requests' lengths, and the latencies to keep."""

import math
from dataclasses import dataclass
from enum import StrEnum

from megainfer.errors import ConfigError


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


@dataclass(frozen=True, slots=True)
class Workload:
    """A typical request: so many tokens of prompt, so many of answer (means or medians)."""

    input_tokens: float
    output_tokens: float
    prefill: Prefill = Prefill.BESIDE

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1):
                raise ConfigError(f"{name} is {value}, but must be at least 1")

    @property
    def context(self) -> float:
        """Mean tokens that a sequence has in the cache while it decodes."""
        return self.input_tokens + self.output_tokens / 2

    @property
    def prompt_tokens_per_token(self) -> float:
        """Prompt tokens to compute beside each generated one, in a steady state."""
        return self.input_tokens / self.output_tokens if self.prefill is Prefill.BESIDE else 0.0


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
