"""Where a node's time goes: seconds and occurrences by kind of work."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic


class StageClock:
    """Adds up busy time; what is in no span is idle (waiting never counts as busy)."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        started = monotonic()
        try:
            yield
        finally:
            self.add(kind, monotonic() - started)

    def add(self, kind: str, seconds: float) -> None:
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def counters(self) -> dict[str, float | int]:
        """`<kind>_seconds` and `<kind>_count` of each kind, `busy_seconds` over all kinds, and
        `clock_seconds`, the monotonic time of the reading."""
        result: dict[str, float | int] = {f"{k}_seconds": v for k, v in self._seconds.items()}
        result.update({f"{k}_count": v for k, v in self._counts.items()})
        result["busy_seconds"] = sum(self._seconds.values())
        result["clock_seconds"] = monotonic()
        return result
