"""A device that works late, out of order, and tells who didn't wait.

It computes on the CPU, but nothing when it is given: work lies in its stream until the host makes
the device go on (`advance`, a question, a wait), and then some stream, by lot, is next. Every use
of memory is checked when it is given: what two pieces of work do to the same memory must be in an
order, by stream, by event, or by what the host has seen done. New memory holds poison.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch import Tensor, dtype
from torch.utils._python_dispatch import _disable_current_modes

from megainfer.device import Chip, Replay, Stream
from tests.support.fake_stream import FakeEvent, FakeReadback, FakeStream, Work
from tests.support.happens_before import HOST, Clock, Stamp, Uses, merge

WORK_SECONDS = 1e-5
"""Of the device's own clock: what work takes that doesn't say."""


class FakeDevice:
    """`device.Device`. host: what the host has seen done. now: seconds on the device's clock that
    the host knows to have passed."""

    name = "fake"
    torch = torch.device("cpu")
    is_host = False
    processors = 2
    chip = Chip("", 0)

    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self.now, self.host, self.uses = 0.0, Clock(), Uses()
        self.doing = Clock()  # what has come before whoever looks at what is done now
        self.streams = [FakeStream(0)]
        self.current = self.streams[0]
        self._recording: list[tuple[Any, ...]] | None = None

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        return self.own(torch.empty(tuple(shape), dtype=dtype))

    def own(self, tensor: Tensor) -> Tensor:
        """New memory, poisoned."""
        self.uses.of(tensor)
        floating = tensor.dtype.is_floating_point
        low = True if tensor.dtype is torch.bool else None
        poison = torch.nan if floating else low or torch.iinfo(tensor.dtype).min
        with _disable_current_modes():
            return tensor.fill_(poison)

    def upload(self, host: Tensor) -> Tensor:
        to = self.empty(host.shape, host.dtype)
        self.launch(lambda: to.copy_(host), [], [to], name="upload")
        return to

    def fill(self, to: Tensor, host: Tensor) -> None:
        self.launch(lambda: to.copy_(host), [], [to], name="fill")

    def read_back(self, tensor: Tensor) -> FakeReadback:
        return FakeReadback(self, tensor)

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream(len(self.streams)))
        return self.streams[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        assert isinstance(stream, FakeStream)
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def event(self, timed: bool = False) -> FakeEvent:
        return FakeEvent(self)

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        seconds: float = WORK_SECONDS,
        name: str = "",
    ) -> None:
        """Give `work` to the current stream. Raises Race. Memory that it uses stays until then, as
        that of a stream does, also what it knows by addresses alone."""
        reads, writes = tuple(reads), tuple(writes)
        if self._recording is not None:
            self._recording.append((work, reads, writes, seconds, name))
            return
        stream = self.current
        merge(stream.clock, self.host)
        stamp = Stamp(stream.index, stream.clock[stream.index] + 1, name)
        self.uses.read(reads, stamp, stream.clock)
        self.uses.write(writes, stamp, stream.clock | {stamp.stream: stamp.number})
        stream.queue.append(Work(work, {**stream.clock}, self.now, seconds, (*reads, *writes)))
        stream.clock[stream.index] += 1

    def capture(self, work: Callable[[], object]) -> Replay:
        recorded: list[tuple[Any, ...]] = []
        self._recording = recorded
        try:
            work()
        finally:
            self._recording = None

        def replay(reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = ()) -> None:
            """What is told of last lies behind all of it in the stream, and is kept as long."""
            for given in recorded:
                self.launch(*given)
            self.launch(lambda: None, reads, writes, name="replay")

        return replay

    def seal(self) -> None:
        """Every operation of torch makes a new tensor here: nothing is counted."""

    def memory(self) -> None: ...

    def host_reads(self, *tensors: Tensor) -> None:
        """The host looks at memory of the device. Raises Race."""
        self.uses.read(tensors, Stamp(HOST, 0, "a look"), self.host)

    def has_done(self, clock: Clock) -> bool:
        return all(len(self.streams[i].ended) > number for i, number in clock.items())

    def advance(self) -> bool:
        """Do the next work of some stream that can go on; False where there is none."""
        ready = [s for s in self.streams if s.queue and self.has_done(s.queue[0].after)]
        if not ready:
            return False
        stream = self.random.choice(ready)
        work = stream.queue.popleft()
        self.doing = work.after | {stream.index: work.after[stream.index] + 1}
        with _disable_current_modes(), torch.inference_mode():
            work.run()
        began = max(work.issued, *(self.streams[i].ended[n] for i, n in work.after.items()))
        stream.ended.append(began + work.seconds)
        return True

    def synchronize(self) -> None:
        """The host waits for all that the device was given."""
        while self.advance():
            pass
        for stream in self.streams:
            merge(self.host, stream.clock)
            self.now = max(self.now, stream.ended[-1])
