"""A request as far as its load is concerned, and what becomes of many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from megainfer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Request:
    """Comes `at` so many seconds. made: of its output tokens, those that it has already then: it
    was another node's, or, at 0 seconds, began before the simulation did."""

    at: float
    input_tokens: int
    output_tokens: int
    made: int = 0

    def __post_init__(self) -> None:
        if not self.at >= 0:
            raise ConfigError(f"a request comes at 0 seconds or later, not at {self.at:g}")
        if self.input_tokens < 1 or not 0 <= self.made < self.output_tokens:
            raise ConfigError(
                "a request has at least 1 token of input and of output, and fewer made than its "
                f"output, not {self.input_tokens}, {self.output_tokens} and {self.made}"
            )

    @property
    def began_before(self) -> bool:
        """Whether its prompt is computed, and the tokens that it has are in the cache."""
        return self.at == 0 and self.made > 0


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `count` times, in seconds; all 0 without any."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Percentiles":
        """Interpolated linearly between the two nearest.

        >>> Percentiles.of([1.0, 2.0, 3.0]).p50
        2.0
        """
        if not seconds:
            return cls()
        ordered = sorted(seconds)
        p50, p90, p99 = (_quantile(ordered, share) for share in (0.5, 0.9, 0.99))
        return cls(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Latencies:
    """What clients see. first_token: from a request's coming to its first token. between_tokens:
    each gap. per_token: mean gap of each request that ended."""

    first_token: Percentiles = Percentiles()
    between_tokens: Percentiles = Percentiles()
    per_token: Percentiles = Percentiles()
    completed: int = 0
    waiting: int = 0  # requests that had no place at the end


@dataclass
class Stopwatch:
    """Collects times from `since` on. Requests that came before then have no first token here."""

    since: float
    first_tokens: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    tokens: int = 0
    completed: int = 0

    def token(self, now: float, came: float, before: float | None, is_first: bool) -> None:
        """A token at `now` of a request that came at `came`; its last one was at `before`."""
        if now < self.since:
            return
        self.tokens += 1
        if is_first:
            if came >= self.since:
                self.first_tokens.append(now - came)
        elif before is not None and before >= self.since:
            self.gaps.append(now - before)

    def ended(self, now: float, first: float | None, tokens: int) -> None:
        """A request's last token at `now`; `tokens` of it since its `first` one, which counts."""
        if now < self.since:
            return
        self.completed += 1
        if first is not None and tokens > 1:
            self.means.append((now - first) / (tokens - 1))

    def latencies(self, waiting: int) -> Latencies:
        first, gaps, means = map(Percentiles.of, (self.first_tokens, self.gaps, self.means))
        return Latencies(first, gaps, means, self.completed, waiting)
