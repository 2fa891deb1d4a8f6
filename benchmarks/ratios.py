"""Paired ratios: their mean, how sure it is, and what follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev

CONFIDENCE = 0.95
LOW = 0.98
"""A ratio below it counts as a loss."""


class Verdict(StrEnum):
    BELOW = f"below {LOW} wholly"
    NOT_BELOW = "not below"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Interval:
    """Where the true ratio is, with CONFIDENCE."""

    mean: float
    low: float
    high: float

    def is_within(self, share: float) -> bool:
        """Whether its ends are no more than this share of the mean away from it."""
        return self.high <= self.mean * (1 + share)

    def verdict(self, share: float) -> Verdict:
        """UNDECIDED: it reaches below LOW, and is wider than the share."""
        if self.high < LOW:
            return Verdict.BELOW
        sure = self.low >= LOW or self.is_within(share)
        return Verdict.NOT_BELOW if sure else Verdict.UNDECIDED


def interval_of(ratios: Sequence[float]) -> Interval:
    """Of the mean log-ratio, by Student's t, as ratios: twice as fast in one round and half as fast
    in the next makes 1. One ratio alone says nothing of the mean."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, half = fmean(logs), math.inf
    if len(logs) > 1:
        half = t_quantile(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    high = math.exp(mean + half) if half < math.inf else math.inf
    return Interval(math.exp(mean), math.exp(mean - half), high)


def t_quantile(freedom: int) -> float:
    """t for which |T| <= t with probability CONFIDENCE, T being Student's with so many degrees of
    freedom.

    >>> round(t_quantile(9), 3)
    2.262
    """
    low, high = 0.0, 1e3
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def _central(t: float, freedom: int) -> float:
    """P(|T| <= t), by the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = 0.0
    for n in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (n - 1) / n
    return 2 / math.pi * (angle + total) if odd else total
