"""Rules that compare a response with the problem's answer: 1 if it is right, else 0."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal

from megainfer.rl.rewards.score import Attempt, Score

Rule = Callable[[Attempt], float]
"""Raises ValueError where the problem's own answer can't be compared with."""

_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+])?(?<![\d.])"  # a sign, unless it is a difference; then a number begins
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,4}(?!\d))?"
)


def exact(attempt: Attempt) -> float:
    """Whether the response is the answer, but for white space around it."""
    return float(attempt.response.strip() == attempt.answer.strip())


def numeric(attempt: Attempt) -> float:
    """Whether the response's last number is the answer's: by value, so 1,200.0 is 1200."""
    expected = last_number(attempt.answer)
    if expected is None:
        raise ValueError(f"the problem's answer {attempt.answer!r:.60} has no number")
    return float(last_number(attempt.response) == expected)


def last_match(expression: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last of all matches that don't overlap, from left to right."""
    last = deque(expression.finditer(text), maxlen=1)
    return last[0] if last else None


def last_number(text: str) -> Decimal | None:
    """The last decimal number of a text, thousands with commas or without.

    >>> last_number("12 apples are $1,250.50."), last_number("x=-3"), last_number("none")
    (Decimal('1250.50'), Decimal('-3'), None)
    """
    found = last_match(_NUMBER, text)
    return None if found is None else Decimal(found.group().replace(",", ""))


class RuleReward:
    """Scores by a rule that ends soon whatever it is given, in this process."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        """One an attempt."""
        return [self._one(attempt) for attempt in attempts]

    def close(self) -> None:
        """There is nothing to end."""

    def _one(self, attempt: Attempt) -> Score:
        try:
            return Score.of(self._rule(attempt))
        except ValueError as error:
            return Score(None, str(error))
