"""Where a node's time goes: seconds and occurrences by kind of work, and its latest spans.

What the host computes has been done when a span is left. What it gives to a device has not: there
a span lies between two marks in the device's own work, whose seconds are known once it has passed
them.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any, NamedTuple, Protocol

from megainfer.errors import MegaInferError

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


class Mark(Protocol):
    """A point in a device's work, such as a timed event that was recorded."""

    def done(self) -> bool:
        """Whether the device has passed it; never blocks."""

    def seconds_since(self, earlier: Any) -> float:
        """The device's seconds between two marks that it has passed."""


Then = Callable[[float, float], None]
"""Hears from when to when something was done, in seconds of the monotonic clock."""


class Lap(Protocol):
    """Work that began when this was made."""

    def end(self, then: Then) -> None:
        """It ends here; `then` is told when it has been done: at once where the host does it."""


class StageClock:
    """Adds up busy time; what is in no span is idle (waiting never counts as busy).

    trace: how many of the latest spans to keep for `take_spans`. mark: makes a mark in the work of
    the device that is measured; None: the host itself is.
    """

    def __init__(self, trace: int = 0, mark: Callable[[], Mark] | None = None) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._spans: deque[Span] = deque(maxlen=trace)
        self.keeps_spans = trace > 0
        self._device = None if mark is None else _DeviceTime(mark)

    def span(
        self, kind: str, micro_batch: int = NOT_OF_ONE, layer: int = NOT_OF_ONE
    ) -> AbstractContextManager[None]:
        if self._device is None:
            return _Work(self, kind, micro_batch, layer)
        return _DeviceWork(self, self._device, (kind, micro_batch, layer))

    def lap(self) -> Lap:
        """For work whose seconds somebody else wants to hear of."""
        return _HostLap() if self._device is None else _DeviceLap(self._device)

    def collect(self) -> None:
        """Take in what a device has done by now."""
        if self._device is not None:
            self._device.collect()

    def keep(self, span: Span) -> None:
        """Keep a span whose time is added apart."""
        self._spans.append(span)

    def keep_latest(self, count: int) -> None:
        """Keep so many of the latest spans from now on, 0: none; those kept before are dropped."""
        self._spans = deque(maxlen=count)
        self.keeps_spans = count > 0

    def of(self, micro_batch: int) -> "MicroBatchClock":
        return MicroBatchClock(self, micro_batch)

    def add(self, kind: str, seconds: float, count: int = 1) -> None:
        self._seconds[kind] += seconds
        self._counts[kind] += count

    def counters(self) -> dict[str, float | int]:
        """`<kind>_seconds` and `<kind>_count` of each kind, `busy_seconds` over all kinds, and
        `clock_seconds`, the monotonic time of the reading."""
        self.collect()
        result: dict[str, float | int] = {f"{k}_seconds": v for k, v in self._seconds.items()}
        result.update({f"{k}_count": v for k, v in self._counts.items()})
        result["busy_seconds"] = sum(self._seconds.values())
        result["clock_seconds"] = monotonic()
        return result

    def take_spans(self) -> list[Span]:
        """The spans kept since the last call, in the order in which they ended."""
        self.collect()
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
        end, clock = monotonic(), self._clock
        clock.add(self._kind, end - self._start)
        if clock.keeps_spans:
            clock.keep(Span(self._kind, self._micro_batch, self._layer, self._start, end))


class _HostLap:
    __slots__ = ("_started",)

    def __init__(self) -> None:
        self._started = monotonic()

    def end(self, then: Then) -> None:
        then(self._started, monotonic())


class _DeviceTime:
    """What a device has been given between pairs of marks, until it has done it."""

    def __init__(self, mark: Callable[[], Mark]) -> None:
        self.mark = mark
        self._waiting: deque[tuple[Mark, Mark, Then]] = deque()  # in the order of the later marks
        # The latest mark that is known to be passed, and when it was. One after the other, since
        # the longer two marks of a device lie apart, the less exact are the seconds between them.
        self._known, self._known_at = mark(), monotonic()

    def end(self, started: Mark, then: Then) -> None:
        self._waiting.append((started, self.mark(), then))
        self.collect()

    def collect(self) -> None:
        while self._waiting and self._waiting[0][1].done():
            started, ended, then = self._waiting.popleft()
            self._known_at += ended.seconds_since(self._known)
            self._known = ended
            then(self._known_at - ended.seconds_since(started), self._known_at)


class _DeviceLap:
    def __init__(self, time: _DeviceTime) -> None:
        self._time = time
        self._started = time.mark()

    def end(self, then: Then) -> None:
        self._time.end(self._started, then)


class _DeviceWork:
    """A span of what a device is given from entering it to leaving it."""

    def __init__(self, clock: StageClock, time: _DeviceTime, of: tuple[str, int, int]) -> None:
        self._clock = clock
        self._time = time
        self._of = of

    def __enter__(self) -> None:
        self._lap = _DeviceLap(self._time)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, MegaInferError):
            self._lap.end(self._done)
        else:  # maybe of the device, which then takes no mark any more
            error.add_note(_place(*self._of))

    def _done(self, started: float, ended: float) -> None:
        kind, micro_batch, layer = self._of
        self._clock.add(kind, ended - started)
        self._clock.keep(Span(kind, micro_batch, layer, started, ended))


def _place(kind: str, micro_batch: int, layer: int) -> str:
    """
    >>> _place("expert", 1, 7), _place("embed", 0, NOT_OF_ONE)
    ('at expert of layer 7, micro-batch 1', 'at embed, micro-batch 0')
    """
    of_layer = "" if layer == NOT_OF_ONE else f" of layer {layer}"
    return f"at {kind}{of_layer}, micro-batch {micro_batch}"


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
