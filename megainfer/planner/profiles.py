"""Measured stage times as curves over rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from megainfer.errors import ConfigError

MAX_PROFILED_ROWS = 512
"""Stage times go on in a straight line from here, so that measuring is a matter of a moment."""


@dataclass(frozen=True)
class Curve:
    """Measured seconds by rows, straight lines between and beyond the points, never negative."""

    points: tuple[tuple[int, float], ...]  # (rows, seconds), rows strictly increasing

    def __post_init__(self) -> None:
        rows = [point[0] for point in self.points]
        if not rows or any(a >= b for a, b in pairwise(rows)):
            raise ConfigError(f"a profile needs points with increasing rows, got rows {rows}")
        for at, seconds in self.points:
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigError(f"a profile has {seconds} seconds at {at} rows")

    def at(self, rows: float) -> float:
        """Seconds that `rows` rows take."""
        if len(self.points) == 1:
            return self.points[0][1]
        segments = list(pairwise(self.points))
        fitting = (s for s in segments if rows <= s[1][0])
        (x0, y0), (x1, y1) = next(fitting, segments[-1])
        return max(0.0, y0 + (y1 - y0) * (rows - x0) / (x1 - x0))


@dataclass(frozen=True)
class StageProfile:
    """T_a, T_e and T_c as measured on this deployment.

    Rows are the tokens of one attention node's micro-batch; the experts' and the transfers' points
    are measured with every attention node sending that many.
    """

    attention: Curve
    expert: Curve
    transfer: Curve

    @property
    def curves(self) -> dict[str, Curve]:
        """By the names of `live.terms.Terms`."""
        return {"attention": self.attention, "experts": self.expert, "transfer": self.transfer}

    @classmethod
    def of(cls, points: Mapping[str, Sequence[tuple[int, float]]]) -> "StageProfile":
        """Of the points of `curves`. Raises ConfigError where one is missing."""
        try:
            own = [Curve(tuple(points[name])) for name in ("attention", "experts", "transfer")]
        except KeyError as error:
            raise ConfigError(f"a profile of stages lacks {error}") from error
        return cls(*own)


def profile_rows(most: int) -> list[int]:
    """1, 2, 4, … and `most`, to a bound: the micro-batch sizes that are measured.

    >>> profile_rows(6)
    [1, 2, 4, 6]
    """
    most = min(most, MAX_PROFILED_ROWS)
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]
