"""Where a node's time goes: seconds and occurrences by kind of work, and its latest spans.

What the host computes has been done when a span is left. What it gives to a device has not: such a
span is two. The host's ends when all was given; the device's lies between two marks in its own
work, and is known once the device has passed them.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from time import monotonic
from typing import NamedTuple, Protocol

from megainfer.errors import MegaInferError
from megainfer.instruments.device_time import Beginning, DeviceTime, Marks, Then

NOT_OF_ONE = -1
"""The micro-batch or layer of a span that belongs to no single one."""
TIMED_EVERY = 37
"""Of a device's spans of a kind one in so many is timed while none are kept, since a mark costs the
host microseconds. No known model's layers are a multiple of it, so that each gets its turn."""


class Span(NamedTuple):
    """Work of one kind from `start` to `end`, seconds of the monotonic clock that all processes of
    a host share. `layer` is the one whose attention half or experts these are. on_device: this is
    when a device did it, and not when its host gave it."""

    kind: str
    micro_batch: int
    layer: int
    start: float
    end: float
    on_device: bool = False


class Lap(Protocol):
    """Work that began when this was made."""

    def end(self, then: Then) -> None:
        """It ends here; `then` is told when it has been done: at once where the host does it."""


class StageClock:
    """Adds up busy time; what is in no span is idle (waiting never counts as busy).

    trace: how many of the latest spans to keep for `take_spans`, and as many of a device. marks: of
    the device that is measured; None: the host itself is. now: the host's clock.
    """

    def __init__(
        self, trace: int = 0, marks: Marks | None = None, now: Callable[[], float] = monotonic
    ) -> None:
        self.now = now
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._device = None if marks is None else _DeviceStages(DeviceTime(marks, now))
        self.keep_latest(trace)

    def span(
        self, kind: str, micro_batch: int = NOT_OF_ONE, layer: int = NOT_OF_ONE
    ) -> AbstractContextManager[None]:
        if self._device is None:
            return _Work(self, kind, micro_batch, layer)
        return _DeviceWork(self, self._device, (kind, micro_batch, layer))

    def host_span(
        self, kind: str, micro_batch: int = NOT_OF_ONE, layer: int = NOT_OF_ONE
    ) -> AbstractContextManager[None]:
        """Of work that is the host's own, whatever a device does meanwhile."""
        return _Work(self, kind, micro_batch, layer)

    def lap(self) -> Lap:
        """For work whose seconds somebody else wants to hear of."""
        if self._device is not None and (began := self._device.time.begin()) is not None:
            return _DeviceLap(self._device.time, began)
        return _HostLap(self.now)

    def collect(self) -> None:
        """Take in what a device has done by now."""
        if self._device is not None:
            self._device.time.collect()

    def keep(self, span: Span) -> None:
        """Keep a span whose time is added apart."""
        self._spans.append(span)

    def keep_latest(self, count: int) -> None:
        """Keep so many of the latest spans from now on, 0: none; those kept before are dropped."""
        self._spans: deque[Span] = deque(maxlen=count)
        self.keeps_spans = count > 0
        if self._device is not None:
            self._device.keep_latest(count)

    def of(self, micro_batch: int) -> "MicroBatchClock":
        return MicroBatchClock(self, micro_batch)

    def add(self, kind: str, seconds: float, count: int = 1) -> None:
        self._seconds[kind] += seconds
        self._counts[kind] += count

    def counters(self) -> dict[str, float | int]:
        """`<kind>_seconds` and `<kind>_count` of each kind, `busy_seconds` over all kinds, and
        `clock_seconds`, the monotonic time of the reading.

        Of a device's kinds the seconds are its own, and `busy_seconds` are of them alone; beside
        them are the host's for giving it the work, `host_<kind>_seconds`, and in
        `device_spans_missed` the spans that should have been kept, and for which no mark was free.
        """
        self.collect()
        of_device = {} if self._device is None else self._device.seconds
        result: dict[str, float | int] = {f"{k}_count": v for k, v in self._counts.items()}
        if self._device is not None:
            given = {**self._seconds, **self._device.given}
            result.update({f"host_{k}_seconds": v for k, v in given.items()})
            result.update({f"{k}_count": v for k, v in self._device.counts.items()})
            result["device_spans_missed"] = self._device.missed
        seconds = {**self._seconds, **of_device}
        result.update({f"{k}_seconds": v for k, v in seconds.items()})
        result["busy_seconds"] = sum((seconds if self._device is None else of_device).values())
        result["clock_seconds"] = self.now()
        return result

    def take_spans(self) -> list[Span]:
        """The spans kept since the last call, in the order in which they ended: the host's, then a
        device's."""
        self.collect()
        spans = list(self._spans)
        self._spans.clear()
        return spans if self._device is None else [*spans, *self._device.take_spans()]


class _Work:
    """A span from entering it to leaving it; a generator would take twice the time."""

    __slots__ = ("_clock", "_kind", "_layer", "_micro_batch", "_start")

    def __init__(self, clock: StageClock, kind: str, micro_batch: int, layer: int) -> None:
        self._clock = clock
        self._kind = kind
        self._micro_batch = micro_batch
        self._layer = layer

    def __enter__(self) -> None:
        self._start = self._clock.now()

    def __exit__(self, *error: object) -> None:
        clock = self._clock
        end = clock.now()
        clock.add(self._kind, end - self._start)
        if clock.keeps_spans:
            clock.keep(Span(self._kind, self._micro_batch, self._layer, self._start, end))


class _HostLap:
    """Also of a device that has no mark free: then it is when the host had given all."""

    __slots__ = ("_now", "_started")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._started = now, now()

    def end(self, then: Then) -> None:
        then(self._started, self._now())


class _DeviceLap:
    def __init__(self, time: DeviceTime, began: Beginning) -> None:
        self._time, self._began = time, began

    def end(self, then: Then) -> None:
        if not self._time.end(self._began, then):
            then(self._began.at, self._time.now())


class _DeviceStages:
    """What a device does of each kind. given: the host's seconds for giving it that. missed: spans
    that should have been kept."""

    def __init__(self, time: DeviceTime) -> None:
        self.time = time
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.given: defaultdict[str, float] = defaultdict(float)
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.missed = 0
        self._untimed: defaultdict[str, int] = defaultdict(int)  # since the last that was timed
        self._spans: deque[Span] = deque(maxlen=0)
        self._until = 0.0  # the end of the latest one kept

    def keep_latest(self, count: int) -> None:
        self._spans = deque(maxlen=count)

    def take_spans(self) -> list[Span]:
        spans = list(self._spans)
        self._spans.clear()
        return spans

    def begin(self, kind: str) -> Beginning | None:
        if not self._spans.maxlen and self.counts[kind] % TIMED_EVERY:
            return None
        return self.time.begin()

    def end(self, of: tuple[str, int, int], given: float, began: Beginning | None) -> None:
        kind, kept = of[0], self._spans
        self.given[kind] += given
        self.counts[kind] += 1
        self._untimed[kind] += 1
        if began is not None:
            for_so_many = self._untimed[kind]
            if self.time.end(began, partial(self._done, of, for_so_many, kept)):
                self._untimed[kind] = 0
                return
        self.missed += bool(kept.maxlen)

    def _done(
        self,
        of: tuple[str, int, int],
        for_so_many: int,
        kept: "deque[Span]",
        started: float,
        ended: float,
    ) -> None:
        """for_so_many: spans of the kind that this one stands for. kept: where those were that were
        kept when it was given; maybe nobody's any more."""
        self.seconds[of[0]] += for_so_many * (ended - started)
        # Where the two clocks were put right in between, it would begin within the one before.
        kept.append(Span(*of, max(started, self._until), ended, on_device=True))
        self._until = ended


class _DeviceWork:
    """A span of what a device is given from entering it to leaving it."""

    __slots__ = ("_began", "_clock", "_of", "_stages", "_start")

    def __init__(self, clock: StageClock, stages: _DeviceStages, of: tuple[str, int, int]) -> None:
        self._clock, self._stages, self._of = clock, stages, of

    def __enter__(self) -> None:
        self._start = self._clock.now()
        self._began = self._stages.begin(self._of[0])

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and not isinstance(error, MegaInferError):
            error.add_note(_place(*self._of))  # maybe of the device, which takes no mark any more
            return
        end, clock = self._clock.now(), self._clock
        self._stages.end(self._of, end - self._start, self._began)
        if clock.keeps_spans:
            clock.keep(Span(*self._of, self._start, end))


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
