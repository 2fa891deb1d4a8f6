"""What a plan is tried with: requests, how they come, and what goes wrong meanwhile."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

from megainfer.errors import ConfigError
from megainfer.planner.search.workload import Workload
from megainfer.simulator.arrivals import (
    Arrivals,
    Bursts,
    Poisson,
    requests_under_way,
    requests_until,
    stretched,
)
from megainfer.simulator.lengths import Fixed, Lengths, LogNormal, Traced
from megainfer.simulator.request import Request


class Pattern(StrEnum):
    """How requests come."""

    POISSON = "poisson"
    BURSTS = "bursts"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests come to a deployment, and what its nodes do to them.

    share: of the throughput that it is asked for, 0.8 for instance. burst_factor: of `Bursts`.
    sigma: of log-normal lengths whose means are the workload's; None: all are as long. trace:
    requests whose lengths, and with the pattern TRACE moments too, are taken; their rate is made
    to fit. jitter: standard deviation of a stage's time, as a share. straggler: a factor on the
    times of one attention node. A plan is for these lengths if its workload is from `workload`.
    """

    pattern: Pattern = Pattern.POISSON
    share: float = 0.8
    burst_factor: float = 4.0
    sigma: float | None = None
    trace: tuple[Request, ...] = ()
    jitter: float = 0.02
    straggler: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"the share of the throughput must be above 0, to 1, not {self.share:g}"
            )
        if not 0 <= self.jitter <= 0.3:
            raise ConfigError(f"jitter must be 0 to 0.3 of a stage's time, not {self.jitter:g}")
        if not 1 <= self.straggler <= 100:
            raise ConfigError(f"a straggler is 1 to 100 times slower, not {self.straggler:g}")
        if self.pattern is Pattern.TRACE and len(self.trace) < 2:
            raise ConfigError("a trace of at least two requests is needed to follow it")

    def lengths(self, workload: Workload) -> Lengths:
        if self.trace:
            return Traced(self.trace)
        if self.sigma is not None:
            return LogNormal(workload.input_tokens, workload.output_tokens, self.sigma)
        return Fixed(workload.input_tokens, workload.output_tokens)

    def workload(self, asked: Workload) -> Workload:
        """What is asked with the lengths that requests will have: a trace's own means, and the
        spread."""
        if self.trace:
            given = fmean(request.input_tokens for request in self.trace)
            made = fmean(request.output_tokens for request in self.trace)
            asked = replace(asked, input_tokens=round(given), output_tokens=round(made))
        return replace(asked, spread=self.lengths(asked).spread)

    def requests(
        self, workload: Workload, rate: float, seconds: float, under_way: int
    ) -> list[Request]:
        """Those that come in so many seconds, `rate` a second, and those that are there before."""
        chance = random.Random(self.seed)
        lengths = self.lengths(workload)
        began = requests_under_way(under_way, lengths, chance)
        if self.pattern is Pattern.TRACE:
            return began + _repeated(stretched(self.trace, rate), seconds)
        return began + requests_until(seconds, self._arrivals(rate), lengths, chance)

    def backlog(self, workload: Workload, places: int, count: int) -> list[Request]:
        """As many as fill `places` places, part of the way through their answers, and `count` that
        wait behind them."""
        chance = random.Random(self.seed)
        lengths = self.lengths(workload)
        began = requests_under_way(places, lengths, chance)
        drawn = lengths.draws(chance)
        return began + [Request(0.0, *next(drawn)) for _ in range(count)]

    def _arrivals(self, rate: float) -> Arrivals:
        return Bursts(rate, self.burst_factor) if self.pattern is Pattern.BURSTS else Poisson(rate)


def _repeated(trace: Sequence[Request], seconds: float) -> list[Request]:
    """From its beginning again where it ends before."""
    length = trace[-1].at * len(trace) / (len(trace) - 1)
    found: list[Request] = []
    begin = 0.0
    while begin < seconds:
        for request in trace:
            if begin + request.at >= seconds:
                return found
            found.append(Request(begin + request.at, request.input_tokens, request.output_tokens))
        begin += length
    return found
