"""How long each stage of a start took."""

from collections.abc import Callable
from time import monotonic


class StartupClock:
    """seconds: of each stage that has ended, in order. A stage ends where the next begins."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._stage: tuple[str, float] | None = None  # its name, and when it began

    def add(self, stage: str, seconds: float) -> None:
        """A stage that somebody else has timed."""
        self.seconds[stage] = seconds

    def begin(self, stage: str) -> None:
        self.end()
        self._stage = (stage, self._clock())

    def end(self) -> None:
        """The end of the latest stage."""
        if self._stage is not None:
            name, since = self._stage
            self.add(name, self._clock() - since)
            self._stage = None
