"""How long requests are: all alike, drawn, or as a trace has them."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Protocol

from megainfer.errors import ConfigError
from megainfer.simulator.request import Request

HALVINGS = 100
"""Of an interval of logarithms: more than a float is exact to."""
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Spread:
    """How much lengths differ, as the means of their powers by the powers of their means; 1 where
    all are alike. A server meets an answer of n tokens n times as long as one of 1, so that what
    it has in its cache depends on these and not on means alone."""

    input_square: float = 1.0
    output_square: float = 1.0
    output_cube: float = 1.0

    def __post_init__(self) -> None:
        # Jensen's and Lyapunov's inequalities, which hold for any lengths.
        square, cube = self.output_square, self.output_cube
        exact = 1 - 1e-9
        if min(self.input_square, square) < exact or cube < square**2 * exact:
            raise ConfigError(
                f"no lengths have the moments {self.input_square:g}, {square:g} and {cube:g}: "
                "squares must be at least 1, and the cube at least the output's square squared"
            )


class Lengths(Protocol):
    """Tokens of (input, output), one request after the other, without an end."""

    def draws(self, chance: random.Random) -> Iterator[tuple[int, int]]: ...

    @property
    def spread(self) -> Spread: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """All requests are as long."""

    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        _check_lengths(self.input_tokens, self.output_tokens)

    def draws(self, chance: random.Random) -> Iterator[tuple[int, int]]:
        while True:
            yield self.input_tokens, self.output_tokens

    @property
    def spread(self) -> Spread:
        return Spread()


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Independent log-normal lengths with these means. sigma: standard deviation of the logarithm.

    None is shorter than a token, or longer than `most` times the mean, so that it fits into a
    cache; what is beyond counts as that long. The median is chosen so that the mean is as told
    nevertheless.
    """

    input_tokens: int
    output_tokens: int
    sigma: float = 1.0
    most: float = 20.0
    _medians: tuple[float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_lengths(self.input_tokens, self.output_tokens)
        if not 0 <= self.sigma <= 3:
            raise ConfigError(f"sigma of log-normal lengths must be 0 to 3, not {self.sigma:g}")
        medians = tuple(
            _median(mean, self.sigma, self.most * mean)
            for mean in (self.input_tokens, self.output_tokens)
        )
        object.__setattr__(self, "_medians", medians)

    def draws(self, chance: random.Random) -> Iterator[tuple[int, int]]:
        given, made = self._medians
        while True:
            yield (
                self._drawn(given, self.input_tokens, chance),
                self._drawn(made, self.output_tokens, chance),
            )

    @property
    def spread(self) -> Spread:
        (given, made), (a, b) = self._medians, (self.input_tokens, self.output_tokens)
        moments = ((2, given, a), (2, made, b), (3, made, b))
        return Spread(
            *(
                _moment(power, median, self.sigma, self.most * mean) / mean**power
                for power, median, mean in moments
            )
        )

    def _drawn(self, median: float, mean: int, chance: random.Random) -> int:
        length = median * math.exp(chance.gauss(0.0, self.sigma))
        return round(max(1.0, min(length, self.most * mean)))


@dataclass(frozen=True, slots=True)
class Traced:
    """Lengths in a trace's order, again from its beginning at its end."""

    requests: Sequence[Request]

    def draws(self, chance: random.Random) -> Iterator[tuple[int, int]]:
        while True:
            yield from ((r.input_tokens, r.output_tokens) for r in self.requests)

    @property
    def spread(self) -> Spread:
        given = [request.input_tokens for request in self.requests]
        made = [request.output_tokens for request in self.requests]
        return Spread(_relative(given, 2), _relative(made, 2), _relative(made, 3))


def _relative(lengths: Sequence[int], power: int) -> float:
    count = len(lengths)
    mean = sum(lengths) / count
    return sum((length / mean) ** power for length in lengths) / count


def _median(mean: int, sigma: float, most: float) -> float:
    """Of the log-normal whose values, kept between 1 and `most`, have this mean, by halving."""
    if sigma == 0:
        return float(mean)
    # Without the limit the median is mean / exp(sigma^2 / 2); with it, no less and at most `most`.
    low, high = math.log(mean) - sigma**2 - 4 * sigma, math.log(most)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _moment(1, math.exp(middle), sigma, most) < mean:
            low = middle
        else:
            high = middle
    return math.exp(low)


def _moment(power: int, median: float, sigma: float, most: float) -> float:
    """The mean of max(1, min(x, most)) ** power of a log-normal x: below 1, between, and above.

    Between a and b standard deviations of ln x the integral of x^k is exp(k mu + k^2 s^2 / 2)
    (Phi(b - k s) - Phi(a - k s)).
    """
    mu = math.log(median)
    if sigma == 0:
        return max(1.0, min(median, most)) ** power
    short, long = -mu / sigma, (math.log(most) - mu) / sigma
    shifted = power * sigma
    between = _NORMAL.cdf(long - shifted) - _NORMAL.cdf(short - shifted)
    whole = math.exp(power * mu + shifted**2 / 2)
    return _NORMAL.cdf(short) + whole * between + most**power * _NORMAL.cdf(-long)


def _check_lengths(*tokens: int) -> None:
    if min(tokens) < 1:
        raise ConfigError(f"lengths must be at least 1 token, not {min(tokens)}")
