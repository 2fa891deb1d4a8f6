"""Where two answers differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """place: the way to it from the top, such as `logprobs[0][3]`."""

    place: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.place}: {self.old!r:.120} became {self.new!r:.120}"


def differences(old: Any, new: Any, place: str = "") -> Iterator[Difference]:
    """Of two values as JSON has them: every leaf that isn't the same, and every list of another
    length or object of other keys, whose parts are then left alone."""
    match old, new:
        case dict(), dict() if old.keys() == new.keys():
            for key in old:
                yield from differences(old[key], new[key], f"{place}.{key}" if place else key)
        case list(), list() if len(old) == len(new):
            for index, pair in enumerate(zip(old, new, strict=True)):
                yield from differences(*pair, f"{place}[{index}]")
        case _ if type(old) is not type(new) or old != new:
            yield Difference(place, old, new)


def count_tokens(answers: Sequence[Mapping[str, Any]]) -> int:
    """Tokens generated."""
    return sum(len(tokens) for answer in answers for tokens in answer["token_ids"])


def count_logprobs(answers: Sequence[Mapping[str, Any]]) -> int:
    """Log-probabilities, of generated tokens and of prompts."""
    rows = [
        row
        for answer in answers
        for position in [*answer["logprobs"], answer["prompt_logprobs"]]
        for row in position or ()
    ]
    return sum(len(row) for row in rows if row is not None)
