"""What is asked of an engine, and what comes of it."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
class Result:
    """One engine under one load: a round, or the medians of several.

    Rates are in tokens a second, as explained in `throughput.py`. None is what an engine doesn't
    tell, or what doesn't exist in this kind of run. Times in ms.
    """

    tokens_per_second: float
    decode_per_second: float | None = None
    prefill_per_second: float | None = None
    ttft: float | None = None
    micro_batches: int | None = None
    t_a: float | None = None
    t_e: float | None = None
    t_c: float | None = None
    idle_attention: float | None = None
    idle_expert: float | None = None


def medians(results: Sequence[Result]) -> Result:
    rows = [asdict(result) for result in results]
    return Result(**{name: _median([row[name] for row in rows]) for name in rows[0]})


def _median(values: list[Any]) -> Any:
    return None if None in values else median(values)
