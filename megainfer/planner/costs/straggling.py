"""How much longer the last of several nodes takes than the mean one."""

from functools import lru_cache
from math import erf, exp, pi, sqrt

_STEP, _REACH = 0.01, 8.0


@lru_cache(maxsize=4096)
def normal_maximum(count: int) -> float:
    """The mean of the largest of `count` independent standard normal variables.

    The integral of x over the density of the maximum, count * phi(x) * Phi(x) ** (count - 1).

    >>> round(normal_maximum(1), 6), round(normal_maximum(2) ** 2 * pi, 6)
    (0.0, 1.0)
    """
    points = range(int(-_REACH / _STEP), int(_REACH / _STEP) + 1)
    return sum(_density(i * _STEP, count) * i * _STEP for i in points) * _STEP


def _density(x: float, count: int) -> float:
    phi = exp(-x * x / 2) / sqrt(2 * pi)
    below = (1 + erf(x / sqrt(2))) / 2
    return float(count * phi * below ** (count - 1))


def expected_maximum(nodes: int, deviation: float) -> float:
    """What the slowest of `nodes` nodes takes, of the mean, where their times are independent and
    normal with this relative standard deviation.

    >>> expected_maximum(1, 0.3), expected_maximum(8, 0.0)
    (1.0, 1.0)
    """
    if nodes <= 1 or deviation <= 0:
        return 1.0
    return 1 + deviation * normal_maximum(nodes)
