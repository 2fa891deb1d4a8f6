"""What is asked of an engine, and what comes of it."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Load:
    """Requests that are sent at once, with random prompts of token ids."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int

    def prompts(self, vocabulary: int, seed: int) -> list[list[int]]:
        draw = random.Random(seed)
        return [
            [draw.randrange(vocabulary) for _ in range(self.prompt_tokens)]
            for _ in range(self.concurrency)
        ]

    @property
    def tokens(self) -> int:
        return self.concurrency * self.output_tokens


@dataclass(frozen=True)
class Round:
    """One engine under one load, once; None is what it doesn't tell.

    seconds: of the whole load. first_seconds: of the same load to its first tokens, all of them.
    ttft: from sending all requests to a request's first token, the median. Times in ms but for
    these seconds.
    """

    seconds: float
    first_seconds: float | None = None
    ttft: float | None = None
    micro_batches: int | None = None
    t_a: float | None = None
    t_e: float | None = None
    t_c: float | None = None
    idle_attention: float | None = None
    idle_expert: float | None = None


@dataclass(frozen=True)
class Result(Round):
    """Medians of several rounds, and the rates that they make, in tokens a second."""

    tokens_per_second: float = 0.0
    decode_per_second: float | None = None
    prefill_per_second: float | None = None


def result_of(load: Load, rounds: Sequence[Round]) -> Result:
    """Rates are made of median times: a difference of two times of one round may be all noise.

    There is no decode rate where even the medians are in the wrong order.
    """
    rows = [asdict(each) for each in rounds]
    times = {name: _median([row[name] for row in rows]) for name in rows[0]}
    seconds, first = times["seconds"], times["first_seconds"]
    result = Result(**times, tokens_per_second=load.tokens / seconds)
    if first is None:
        return result
    decoded = load.tokens - load.concurrency
    return replace(
        result,
        prefill_per_second=load.concurrency * load.prompt_tokens / first,
        decode_per_second=decoded / (seconds - first) if seconds > first else None,
    )


def _median(values: list[Any]) -> Any:
    return None if None in values else median(values)
