"""When requests come: drawn, or as a trace has them."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from megainfer.errors import ConfigError
from megainfer.simulator.lengths import Lengths
from megainfer.simulator.request import Request


class Arrivals(Protocol):
    """Moments in seconds, ascending, without an end."""

    def times(self, chance: random.Random) -> Iterator[float]: ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent requests, `rate` a second on average."""

    rate: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def times(self, chance: random.Random) -> Iterator[float]:
        now = 0.0
        while True:
            now += chance.expovariate(self.rate)
            yield now


@dataclass(frozen=True, slots=True)
class Bursts:
    """A Poisson process whose rate is `factor` times as high in bursts as between them.

    Bursts last `seconds` on average and come as long after each other as makes them `share` of the
    time, both exponentially distributed; over a long time `rate` requests come a second. (This is a
    Markov-modulated Poisson process of two states.)
    """

    rate: float
    factor: float = 4.0
    seconds: float = 1.0
    share: float = 0.2

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if not (1 <= self.factor < math.inf and self.seconds > 0 and 0 < self.share < 1):
            raise ConfigError(
                "bursts need a factor of at least 1, seconds above 0 and a share between 0 and 1, "
                f"not {self.factor:g}, {self.seconds:g} and {self.share:g}"
            )

    def times(self, chance: random.Random) -> Iterator[float]:
        calm = self.rate / (1 + (self.factor - 1) * self.share)
        rates = {True: calm * self.factor, False: calm}
        lasting = {True: self.seconds, False: self.seconds * (1 - self.share) / self.share}
        now, bursting = 0.0, chance.random() < self.share
        changing = chance.expovariate(1 / lasting[bursting])
        while True:
            # A Poisson process forgets: at a change it may be drawn anew.
            following = now + chance.expovariate(rates[bursting])
            if following < changing:
                now = following
                yield now
                continue
            now, bursting = changing, not bursting
            changing += chance.expovariate(1 / lasting[bursting])


def requests_until(
    end: float, arrivals: Arrivals, lengths: Lengths, chance: random.Random
) -> list[Request]:
    """Those that come before `end` seconds."""
    drawn = lengths.draws(chance)
    requests = []
    for at in arrivals.times(chance):
        if at >= end:
            break
        requests.append(Request(at, *next(drawn)))
    return requests


def requests_under_way(count: int, lengths: Lengths, chance: random.Random) -> list[Request]:
    """What a server has at a random moment of a steady load: `count` requests, each somewhere in
    its output. Long outputs are met more often than they come, in proportion to their length."""
    pool = list(islice(lengths.draws(chance), max(64, 4 * count)))
    chosen = chance.choices(pool, weights=[output for _, output in pool], k=count)
    return [
        Request(0.0, given, output, made=chance.randrange(1, output) if output > 1 else 0)
        for given, output in chosen
    ]


def stretched(requests: Sequence[Request], rate: float) -> list[Request]:
    """The same requests, coming `rate` a second on average, in the pattern that they have."""
    _check_rate(rate)
    span = requests[-1].at - requests[0].at
    if len(requests) < 2 or not span:
        raise ConfigError("a trace needs two requests at different times to have a rate")
    factor = (len(requests) - 1) / span / rate
    begin = requests[0].at
    return [Request((r.at - begin) * factor, r.input_tokens, r.output_tokens) for r in requests]


def _check_rate(rate: float) -> None:
    if not 0 < rate < math.inf:
        raise ConfigError(f"requests must come more than 0 times a second, not {rate:g}")
