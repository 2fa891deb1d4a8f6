"""How many micro-batches pay for the load of the moment, found by trying. No tensors, no clock.

What m gives depends on how many requests run and on how long they are, and stage times measured
one at a time don't show what the stages do to each other: two that read weights and caches at the
same time share one memory bus. So a node that may choose measures its own tokens a second under
each m that could be best, keeps the best, and looks again when the load is another, or after a
while.
"""

import math
from dataclasses import dataclass, field
from statistics import median

WINDOW_SECONDS = 0.04
WINDOW_STEPS = 6
"""Of one measurement: both, at least."""
WINDOWS = 2
"""Measurements of each m before they are compared, taken in turns."""
BETTER = 1.02
"""What a larger m has to give to be preferred: it costs memory and each request's time a token."""
TRUSTED_SECONDS = 300.0
"""How long a comparison is believed."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A step that has ended.

    now: seconds of a monotonic clock. tokens: that it generated. running: requests of the node.
    context: tokens of an average one. prefills: it also computed tokens of prompts.
    """

    now: float
    tokens: int
    running: int
    context: float
    prefills: bool


@dataclass
class _Window:
    """A stretch of steps under one m that are alike."""

    since: float
    running: int
    steps: int = 0
    tokens: int = 0

    def is_like(self, running: int) -> bool:
        return abs(running - self.running) * 8 <= self.running

    def is_over(self, now: float, steps: int) -> bool:
        return self.steps >= steps and now - self.since >= WINDOW_SECONDS


@dataclass
class _Trial:
    """What is known of the load at hand."""

    rates: dict[int, list[float]] = field(default_factory=dict)  # tokens a second, by m
    decided_at: float | None = None

    def best(self) -> int:
        """Of those measured, the least m that no larger one clearly beats."""
        best = min(self.rates)
        for m in sorted(self.rates):
            if median(self.rates[m]) > BETTER * median(self.rates[best]):
                best = m
        return best


class MicroBatchTuner:
    """Chooses m in 1..limit, beginning with `first`; tell it of every step's end.

    Only stretches without prefill and with about as many requests are compared. From the m in use
    it looks at its neighbours, and goes on in the direction that gains.
    """

    def __init__(self, limit: int, first: int) -> None:
        self._limit = limit
        self.active = first
        self._trials: dict[tuple[int, int], _Trial] = {}  # by load
        self._load: tuple[int, int] | None = None
        self._window: _Window | None = None
        self._skipped = 0  # steps since m changed

    def step_ended(self, progress: StepProgress) -> int:
        """The m to use from now on."""
        if progress.prefills or not progress.tokens:
            self._window = None
            return self.active
        load = _load(progress)
        if load != self._load:
            self._enter(load, progress.now)
        if self._trial.decided_at is None:
            self._measure(progress)
        elif progress.now - self._trial.decided_at > TRUSTED_SECONDS:
            self._forget()
        return self.active

    @property
    def _trial(self) -> _Trial:
        assert self._load is not None
        return self._trials[self._load]

    def _enter(self, load: tuple[int, int], now: float) -> None:
        self._load = load
        trial = self._trials.setdefault(load, _Trial())
        if trial.decided_at is not None and now - trial.decided_at <= TRUSTED_SECONDS:
            self._use(trial.best())
        else:
            self._forget()

    def _forget(self) -> None:
        assert self._load is not None
        self._trials[self._load] = _Trial()
        self._window = None

    def _measure(self, progress: StepProgress) -> None:
        if self._skipped < 2 * self._limit:  # micro-batches form anew
            self._skipped += 1
            return
        window = self._window
        if window is None or not window.is_like(progress.running):
            self._window = _Window(progress.now, progress.running)
            return
        window.steps += 1
        window.tokens += progress.tokens
        if window.is_over(progress.now, WINDOW_STEPS * self.active):
            rate = window.tokens / (progress.now - window.since)
            self._trial.rates.setdefault(self.active, []).append(rate)
            self._window = None
            self._go_on(progress)

    def _go_on(self, progress: StepProgress) -> None:
        """To the m that is to be measured next; without one, decide."""
        rates, most = self._trial.rates, min(self._limit, progress.running)
        best = self._trial.best()
        near = [m for m in (best, best - 1, best + 1) if 1 <= m <= most]
        lacking = [m for m in near if len(rates.get(m, ())) < WINDOWS]
        if lacking:
            self._use(min(lacking, key=lambda m: len(rates.get(m, ()))))
        else:
            self._trial.decided_at = progress.now
            self._use(best)

    def _use(self, m: int) -> None:
        if m != self.active:
            self.active, self._skipped, self._window = m, 0, None


def _load(progress: StepProgress) -> tuple[int, int]:
    """Loads that are alike: as many requests, as much context, to about a factor of two."""
    return round(math.log2(progress.running)), round(math.log2(max(1.0, progress.context)))
