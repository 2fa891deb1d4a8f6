"""What the outcomes of a load sum up to, by the definitions of `vllm bench serve`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megainfer.bench.sample import Outcome
from megainfer.errors import ConfigError

GOALS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class Distribution:
    """In the unit of its values; all 0 without any. percentiles: by number, such as 99.0."""

    mean: float
    median: float
    std: float
    percentiles: dict[float, float]

    @classmethod
    def of(cls, values: Sequence[float], percentiles: Sequence[float]) -> "Distribution":
        """Percentiles are interpolated linearly between the two nearest values."""
        given = np.asarray(values if len(values) else [0.0], dtype=np.float64)
        return cls(
            mean=float(given.mean()),
            median=float(np.median(given)),
            std=float(given.std()),
            percentiles={p: float(np.percentile(given, p)) for p in percentiles},
        )


@dataclass(frozen=True)
class Summary:
    """Of a load that took `seconds`. Rates are a second; times are in milliseconds.

    goodput: answered requests that met every goal, None without goals. peak_output_rate: tokens of
    the busiest second, counted in pieces. times: ttft, tpot (answers of two tokens and more), itl,
    e2el and client_queue_time.
    """

    seconds: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    request_rate: float
    goodput: float | None
    output_rate: float
    total_rate: float
    peak_output_rate: float
    peak_concurrency: int
    times: dict[str, Distribution]


def summarise(
    outcomes: Sequence[Outcome],
    seconds: float,
    percentiles: Sequence[float],
    goals: Mapping[str, float],
) -> Summary:
    """goals: milliseconds by ttft, tpot or e2el; answers of one token have a tpot of 0 there."""
    answered = [outcome for outcome in outcomes if outcome.ok]
    inputs = sum(outcome.prompt_tokens for outcome in answered)
    outputs = sum(outcome.tokens for outcome in answered)
    good = sum(_meets(outcome, goals) for outcome in answered)
    return Summary(
        seconds=seconds,
        completed=len(answered),
        failed=len(outcomes) - len(answered),
        input_tokens=inputs,
        output_tokens=outputs,
        request_rate=_per(len(answered), seconds),
        goodput=_per(good, seconds) if goals else None,
        output_rate=_per(outputs, seconds),
        total_rate=_per(inputs + outputs, seconds),
        peak_output_rate=_busiest_second(answered),
        peak_concurrency=_most_at_a_time(answered),
        times=_times(answered, percentiles),
    )


def parse_goals(texts: Iterable[str]) -> dict[str, float]:
    """Milliseconds by name, of `ttft:200` or `ttft:200,tpot:50`. Raises ConfigError."""
    goals = {}
    for text in ",".join(texts).replace(" ", ",").split(","):
        name, _, value = text.partition(":")
        if not text:
            continue
        if name not in GOALS or not _is_limit(value):
            raise ConfigError(
                f"--goodput takes NAME:MILLISECONDS with {', '.join(GOALS)} as names, such as "
                f"ttft:200,tpot:50, not {text!r}"
            )
        goals[name] = float(value)
    return goals


def _is_limit(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def _meets(outcome: Outcome, goals: Mapping[str, float]) -> bool:
    reached = {"ttft": outcome.ttft or 0.0, "tpot": outcome.tpot, "e2el": outcome.latency}
    return all(reached[name] * 1000 <= limit for name, limit in goals.items())


def _times(answered: Sequence[Outcome], percentiles: Sequence[float]) -> dict[str, Distribution]:
    seconds = {
        "ttft": [outcome.ttft for outcome in answered if outcome.ttft is not None],
        "tpot": [outcome.tpot for outcome in answered if outcome.tokens > 1],
        "itl": [gap for outcome in answered for gap in outcome.itl],
        "e2el": [outcome.latency for outcome in answered],
        "client_queue_time": [outcome.queued for outcome in answered],
    }
    return {
        name: Distribution.of([value * 1000 for value in values], percentiles)
        for name, values in seconds.items()
    }


def token_times(outcome: Outcome) -> list[float]:
    """When each of an answer's pieces came, on the clock of its start."""
    if outcome.ttft is None:
        return []
    return [float(t) for t in outcome.start + np.cumsum([outcome.ttft, *outcome.itl])]


def tokens_by_second(answered: Sequence[Outcome]) -> list[int]:
    """Pieces that came in each second since the first of these requests was sent."""
    if not answered:
        return []
    begin = min(outcome.start for outcome in answered)
    seconds = [int(time - begin) for outcome in answered for time in token_times(outcome)]
    return [int(count) for count in np.bincount(seconds)]


def _busiest_second(answered: Sequence[Outcome]) -> float:
    return float(max(tokens_by_second(answered), default=0))


def _most_at_a_time(answered: Sequence[Outcome]) -> int:
    return max((running for _, running in concurrency(answered)), default=0)


def concurrency(answered: Sequence[Outcome]) -> list[tuple[float, int]]:
    """(time, requests from then on) at every change; one that ends frees its place at once."""
    changes = [(outcome.start, 1) for outcome in answered]
    changes += [(outcome.start + outcome.latency, -1) for outcome in answered]
    changes.sort()
    running = np.cumsum([change for _, change in changes])
    return [(time, int(count)) for (time, _), count in zip(changes, running, strict=True)]


def _per(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else math.nan
