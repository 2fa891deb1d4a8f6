"""What a step's time goes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class StepClock:
    """Seconds of a step by what they were spent on, which may be several things at a time; it
    starts when it is made."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measures(self, what: str) -> Iterator[None]:
        """What is done inside counts as this."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(what, perf_counter() - start)

    def add(self, what: str, seconds: float) -> None:
        """So much went to this."""
        self._seconds[what] = self._seconds.get(what, 0.0) + seconds

    def metrics(self) -> dict[str, float]:
        """`seconds/...` of each, and of the whole step. `idle/engine` is the share of it in which
        nothing was drawn."""
        whole = perf_counter() - self._start
        rollout = self._seconds.get("rollout", 0.0)
        found = {f"seconds/{what}": seconds for what, seconds in self._seconds.items()}
        return {
            **found,
            "seconds/step": whole,
            "idle/engine": 1 - rollout / whole if whole else 0.0,
        }
