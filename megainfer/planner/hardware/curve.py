"""What fraction of a peak rate is reached, by the size of what is asked."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from megainfer.errors import ConfigError
from megainfer.planner.formulas import ROUNDING


@dataclass(frozen=True, slots=True)
class Utilisation:
    """The fraction of a peak rate that is reached, by size: rows, or bytes.

    Straight lines between the points where both axes are logarithmic, so that half-way between 64
    and 256 is 128; the first and last fraction hold beyond the ends. No line is steeper than the
    sizes grow, so that more is never done in less time.
    """

    points: tuple[tuple[float, float], ...]  # (size, fraction), sizes strictly increasing
    # Plans ask for fractions by the million: sizes, and each segment's exponent.
    _sizes: tuple[float, ...] = field(default=(), init=False, repr=False, compare=False)
    _exponents: tuple[float, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.points:
            raise ConfigError("a utilisation curve needs a point, [size, fraction]")
        for size, fraction in self.points:
            if not (0 < size < math.inf and 0 < fraction <= 1):
                raise ConfigError(
                    f"a utilisation curve has the point [{size}, {fraction}]; sizes are more than "
                    "0, fractions more than 0 and at most 1"
                )
        for (size, fraction), (larger, other) in pairwise(self.points):
            if larger <= size:
                raise ConfigError(
                    f"a utilisation curve needs increasing sizes, but {larger} follows {size}"
                )
            if other / fraction > larger / size * (1 + ROUNDING):
                raise ConfigError(
                    f"a utilisation curve rises from {fraction} at {size} to {other} at {larger}: "
                    "more would be done in less time"
                )
        object.__setattr__(self, "_sizes", tuple(size for size, _ in self.points))
        exponents = (
            math.log(other / fraction) / math.log(larger / size)
            for (size, fraction), (larger, other) in pairwise(self.points)
        )
        object.__setattr__(self, "_exponents", tuple(exponents))

    def at(self, size: float) -> float:
        """The fraction at this size, more than 0 and at most 1.

        >>> Utilisation(((64, 0.1), (256, 0.4))).at(128)
        0.2
        """
        after = bisect_right(self._sizes, size)
        if after in (0, len(self.points)):
            return self.points[min(after, len(self.points) - 1)][1]
        start, fraction = self.points[after - 1]
        return fraction * math.pow(size / start, self._exponents[after - 1])

    @classmethod
    def constant(cls, fraction: float) -> "Utilisation":
        """The same at all sizes."""
        return cls(((1.0, fraction),))

    @classmethod
    def measured(cls, rate: float, times: Iterable[tuple[float, float]]) -> "Utilisation":
        """Of what sizes took: (size, seconds) in any order, of something that would take
        size / rate at the peak.

        Noise is smoothed: a size that took less time than a smaller one counts as having taken as
        long, and what was faster than the peak counts as the peak.

        >>> Utilisation.measured(10.0, [(1, 0.5), (10, 2), (40, 2), (20, 4)]).points
        ((1.0, 0.2), (10.0, 0.5), (20.0, 0.5), (40.0, 1.0))
        """
        points = list[tuple[float, float]]()
        longest = 0.0
        for size, seconds in sorted(times):
            longest = max(longest, seconds)
            if points and size == points[-1][0]:
                points.pop()
            points.append((float(size), min(1.0, size / rate / longest)))
        return cls(tuple(points))
