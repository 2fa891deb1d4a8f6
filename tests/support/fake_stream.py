"""The streams, events and read-backs of the fake device."""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tests.support.happens_before import Clock, merge


class Owner(Protocol):
    """What they need of the device, see `fake_device.FakeDevice`."""

    random: Random
    now: float
    host: Clock
    streams: "Sequence[FakeStream]"
    current: "FakeStream"

    def launch(
        self,
        work: Callable[[], object],
        reads: Sequence[Tensor],
        writes: Sequence[Tensor],
        *,
        name: str,
    ) -> None: ...
    def event(self) -> "FakeEvent": ...
    def has_done(self, clock: Clock) -> bool: ...
    def advance(self) -> bool: ...


class Work(NamedTuple):
    run: Callable[[], object]
    after: Clock
    issued: float
    seconds: float
    memory: tuple[Tensor, ...]


class FakeStream:
    """`device.Stream`. ended: when each work that is done was, on the device's clock."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.queue = deque[Work]()
        self.ended = [0.0]
        self.clock: Clock = {index: 0}  # what comes before its next work


class FakeEvent:
    """`device.Event`."""

    def __init__(self, device: Owner) -> None:
        self._device = device
        self._clock, self._given_at = Clock(), 0.0

    def record(self) -> None:
        self._clock, self._given_at = {**self._device.current.clock}, self._device.now

    def done(self) -> bool:
        """Whoever asks lets some time pass, in which the device may go on."""
        for _ in range(self._device.random.randrange(3)):
            self._device.advance()
        return self._seen()

    def wait(self) -> None:
        merge(self._device.current.clock, self._clock)

    def synchronize(self) -> None:
        while not self._seen():
            assert self._device.advance(), "the device waits for work that nobody gave it"

    def seconds_since(self, earlier: "FakeEvent") -> float:
        return self.at() - earlier.at()

    def at(self) -> float:
        """When it was reached, on the device's clock; an idle stream reaches it at once."""
        before = (self._device.streams[i].ended[number] for i, number in self._clock.items())
        return max([self._given_at, *before])

    def _seen(self) -> bool:
        done = self._device.has_done(self._clock)
        if done:
            merge(self._device.host, self._clock)
            self._device.now = max(self._device.now, self.at())
        return done


class FakeReadback:
    """`device.Readback`."""

    def __init__(self, device: Owner, tensor: Tensor) -> None:
        values = self._values = torch.empty(tensor.shape, dtype=tensor.dtype)
        device.launch(lambda: values.copy_(tensor), [tensor], [], name="read_back")
        self._event = device.event()
        self._event.record()

    def done(self) -> bool:
        return self._event.done()

    def take(self) -> Tensor:
        self._event.synchronize()
        return self._values
