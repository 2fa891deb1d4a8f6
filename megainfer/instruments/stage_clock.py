"""Where a node's time goes: seconds and occurrences by kind of work, and its latest spans."""

from collections import deque
from contextlib import AbstractContextManager
from time import monotonic
from typing import NamedTuple

NOT_OF_ONE = -1
"""The micro-batch or layer of a span that belongs to no single one."""


class Span(NamedTuple):
    """Work of one kind from `start` to `end`, seconds of the monotonic clock that all processes of
    a host share. `layer` is the one whose attention half or experts these are."""

    kind: str
    micro_batch: int
    layer: int
    start: float
    end: float


class StageClock:
    """Adds up busy time; what is in no span is idle (waiting never counts as busy).

    trace: how many of the latest spans to keep for `take_spans`.
    """

    def __init__(self, trace: int = 0) -> None:
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._spans: deque[Span] = deque(maxlen=trace)

    def span(
        self, kind: str, micro_batch: int = NOT_OF_ONE, layer: int = NOT_OF_ONE
    ) -> AbstractContextManager[None]:
        return _Work(self, kind, micro_batch, layer)

    @property
    def keeps_spans(self) -> bool:
        return bool(self._spans.maxlen)

    def keep(self, span: Span) -> None:
        """Keep a span whose time is added apart."""
        self._spans.append(span)

    def keep_latest(self, count: int) -> None:
        """Keep so many of the latest spans from now on, 0: none; those kept before are dropped."""
        self._spans = deque(maxlen=count)

    def of(self, micro_batch: int) -> "MicroBatchClock":
        return MicroBatchClock(self, micro_batch)

    def add(self, kind: str, seconds: float, count: int = 1) -> None:
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds
        self._counts[kind] = self._counts.get(kind, 0) + count

    def counters(self) -> dict[str, float | int]:
        """`<kind>_seconds` and `<kind>_count` of each kind, `busy_seconds` over all kinds, and
        `clock_seconds`, the monotonic time of the reading."""
        result: dict[str, float | int] = {f"{k}_seconds": v for k, v in self._seconds.items()}
        result.update({f"{k}_count": v for k, v in self._counts.items()})
        result["busy_seconds"] = sum(self._seconds.values())
        result["clock_seconds"] = monotonic()
        return result

    def take_spans(self) -> list[Span]:
        """The spans kept since the last call, in the order in which they ended."""
        spans = list(self._spans)
        self._spans.clear()
        return spans


class _Work:
    """A span from entering it to leaving it; a generator would take twice the time."""

    __slots__ = ("_clock", "_kind", "_layer", "_micro_batch", "_start")

    def __init__(self, clock: StageClock, kind: str, micro_batch: int, layer: int) -> None:
        self._clock = clock
        self._kind = kind
        self._micro_batch = micro_batch
        self._layer = layer

    def __enter__(self) -> None:
        self._start = monotonic()

    def __exit__(self, *error: object) -> None:
        end = monotonic()
        self._clock.add(self._kind, end - self._start)
        if self._clock.keeps_spans:
            self._clock.keep(Span(self._kind, self._micro_batch, self._layer, self._start, end))


class MicroBatchClock(NamedTuple):
    """A clock for work on one micro-batch."""

    clock: StageClock
    micro_batch: int

    def span(self, kind: str, layer: int) -> AbstractContextManager[None]:
        """See `StageClock.span`."""
        return self.clock.span(kind, self.micro_batch, layer)

    @property
    def keeps_spans(self) -> bool:
        return self.clock.keeps_spans

    def add(self, kind: str, seconds: float, count: int) -> None:
        self.clock.add(kind, seconds, count)

    def keep(self, kind: str, layer: int, start: float, end: float) -> None:
        """See `StageClock.keep`."""
        self.clock.keep(Span(kind, self.micro_batch, layer, start, end))
