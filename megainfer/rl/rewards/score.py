"""What is scored, what comes of it, and who scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from megainfer.errors import cited


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer that a model gave. prompt: the problem's text; answer: the problem's own answer, to
    which the response is compared."""

    prompt: str
    response: str
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """A finite reward, or why there is none: the answer then trains nothing and is counted."""

    reward: float | None
    skipped: str | None = None

    @classmethod
    def of(cls, value: Any) -> "Score":
        """From what a reward function returned: any real number, numpy's too.

        >>> Score.of(True), Score.of(float("nan")).skipped, Score.of("1").skipped
        (Score(reward=1.0, skipped=None), 'it gave nan', "it gave '1', which is no number")
        """
        if not isinstance(value, Real):
            return cls(None, f"it gave {cited(value)}, which is no number")
        try:
            reward = float(value)
        except OverflowError:
            return cls(None, "it gave an integer beyond floating point")
        return cls(reward) if math.isfinite(reward) else cls(None, f"it gave {reward}")


class Reward(Protocol):
    """Scores answers. One that fails is a `Score` that says so, and hinders no other."""

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        """One an attempt, in their order, in bounded time."""

    def close(self) -> None:
        """End what it has started; it can be called twice."""
