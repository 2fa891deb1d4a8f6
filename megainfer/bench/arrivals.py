"""When requests are sent: all at once, as a gamma process, or at a rate that ramps up."""

import math
from dataclasses import dataclass

import numpy as np

from megainfer.errors import ConfigError

RAMPS = ("linear", "exponential")


@dataclass(frozen=True)
class Arrivals:
    """Rates in requests a second; infinity sends all at once.

    burstiness: the shape of the gamma distribution of intervals. 1 is a Poisson process, less is
    burstier, more is steadier, infinity is a metronome. ramp: how the rate goes from ramp_start to
    ramp_end over the requests, instead of `rate`. Raises ConfigError.
    """

    rate: float = math.inf
    burstiness: float = 1.0
    ramp: str | None = None
    ramp_start: float | None = None
    ramp_end: float | None = None

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"--request-rate must be more than 0, or inf, not {self.rate:g}")
        if not self.burstiness > 0:
            raise ConfigError(f"--burstiness must be more than 0, not {self.burstiness:g}")
        if self.ramp is not None:
            self._check_ramp()
        elif self.ramp_start is not None or self.ramp_end is not None:
            raise ConfigError("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy")

    def _check_ramp(self) -> None:
        start, end = self.ramp_start, self.ramp_end
        if self.ramp not in RAMPS:
            raise ConfigError(f"--ramp-up-strategy must be {' or '.join(RAMPS)}, not {self.ramp!r}")
        if self.rate != math.inf:
            raise ConfigError("--ramp-up-strategy sets the rate; leave --request-rate out")
        if start is None or end is None:
            raise ConfigError(
                "--ramp-up-strategy needs both --ramp-up-start-rps and --ramp-up-end-rps"
            )
        if not 0 < start <= end < math.inf:
            raise ConfigError(
                "--ramp-up-start-rps must be more than 0 and at most --ramp-up-end-rps, "
                f"not {start:g} and {end:g}"
            )

    def rates(self, count: int) -> list[float]:
        """The rate at which each request is sent."""
        start, end = self.ramp_start, self.ramp_end
        if self.ramp is None or start is None or end is None:
            return [self.rate] * count
        progress = [i / max(count - 1, 1) for i in range(count)]
        if self.ramp == "linear":
            return [start + (end - start) * share for share in progress]
        return [start * (end / start) ** share for share in progress]

    def times(self, count: int, random: np.random.Generator) -> list[float]:
        """Seconds from the beginning at which each request is sent.

        At a fixed rate they are stretched so that the last is sent after count / rate seconds: then
        two seeds differ in their pattern, not in the load.
        """
        if self.ramp is None and self.rate == math.inf:
            return [0.0] * count
        times = np.cumsum([self._interval(rate, random) for rate in self.rates(count)])
        if self.ramp is None and times[-1] > 0:
            times *= count / self.rate / times[-1]
        return [float(time) for time in times]

    def _interval(self, rate: float, random: np.random.Generator) -> float:
        if self.burstiness == math.inf:
            return 1 / rate
        return float(random.gamma(self.burstiness, 1 / (rate * self.burstiness)))
