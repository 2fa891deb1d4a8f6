"""How many damaged calls are recovered, by notation and damage.

python -m tests.support.call_recovery [CALLS]   prints the table (default: 100000 in all)
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.parsing.notations import NOTATIONS
from server.parsing.parts import Parser, Parts, whole_calls
from tests.support.damaged_calls import (
    DAMAGES,
    SAID,
    TOOLS,
    Call,
    damaged,
    in_pieces,
)


@dataclass(frozen=True)
class Tried:
    """A text that was parsed as a whole and in pieces. recovered: all calls that were meant came
    out, and nothing of them is content."""

    text: str
    recovered: bool


def tries(name: str, damage: str, count: int) -> Iterator[Tried]:
    """Raises AssertionError where whole and pieces differ, or arguments are no JSON object."""
    for seed in range(count):
        dice = random.Random(f"{name} {damage} {seed}")
        calls, text = damaged(name, damage, dice)
        whole = _summary(parsed(NOTATIONS[name].parser(TOOLS), [text]))
        pieces = _summary(parsed(NOTATIONS[name].parser(TOOLS), in_pieces(text, dice)))
        assert pieces == whole, text
        content, found = whole
        values = [(call, json.loads(arguments)) for call, arguments in found]
        assert all(isinstance(value, dict) for _, value in values), text
        meant = values == [(call.name, call.arguments) for call in calls]
        yield Tried(text, meant and content.strip() in SAID)


def parsed(parser: Parser, pieces: list[str]) -> Parts:
    parts = Parts()
    for piece in pieces:
        parts.add(parser.push(piece))
    parts.add(parser.finish())
    return parts


def _summary(parts: Parts) -> tuple[str, list[tuple[str, str]]]:
    return parts.content, [(call.name, call.arguments) for call in whole_calls(parts.calls)]


def table(count: int) -> dict[tuple[str, str], float]:
    """Shares, of about `count` calls in all."""
    cells = [(name, damage) for name, damages in DAMAGES.items() for damage in damages]
    each = -(-count // len(cells))
    return {
        (name, damage): sum(tried.recovered for tried in tries(name, damage, each)) / each
        for name, damage in cells
    }


def main(count: int = 100_000) -> None:
    shares = table(count)
    for name, damages in DAMAGES.items():
        worse = {d: shares[name, d] for d in damages if shares[name, d] < 1}
        mean = sum(shares[name, d] for d in damages) / len(damages)
        rest: Any = ", ".join(f"{damage} {share:.1%}" for damage, share in worse.items())
        print(f"{name:14} {len(damages):3} damages, mean {mean:6.1%}; all 100% but: {rest}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

__all__ = ["Call", "table", "tries"]
