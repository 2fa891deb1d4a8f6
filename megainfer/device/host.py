"""The host itself as a device: everything is done when the call that gave it returns."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Self

import torch
from torch import Tensor, dtype

from megainfer.device.device import Chip, Replay, Stream


class HostStream:
    """`Stream` of calls, which are in order anyway."""


class HostEvent:
    """`Event` that is done as soon as it is recorded."""

    def __init__(self) -> None:
        self._at = 0.0

    def record(self) -> None:
        """See `Event.record`."""
        self._at = monotonic()

    def done(self) -> bool:
        """See `Event.done`."""
        return True

    def wait(self) -> None:
        """Nothing is ever to be waited for."""

    def synchronize(self) -> None:
        """Nothing is ever to be waited for."""

    def seconds_since(self, earlier: Self) -> float:
        """See `Event.seconds_since`; of the host's monotonic clock."""
        return self._at - earlier._at


class HostReadback:
    """`Readback` of what is there already."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def done(self) -> bool:
        """See `Readback.done`."""
        return True

    def take(self) -> Tensor:
        """See `Readback.take`."""
        return self._tensor


class HostDevice:
    """`Device` of CPU memory and the calling thread."""

    name = "cpu"
    torch = torch.device("cpu")
    is_host = True
    chip = Chip("", 0)
    processors = (
        2  # where kernels are interpreted: fewer than tiles, so that programs go on to the next
    )

    def __init__(self) -> None:
        self._stream = HostStream()

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        """See `Device.empty`."""
        return torch.empty(tuple(shape), dtype=dtype)

    def upload(self, host: Tensor) -> Tensor:
        """See `Device.upload`."""
        return host

    def fill(self, to: Tensor, host: Tensor) -> None:
        """See `Device.fill`."""
        to.copy_(host)

    def read_back(self, tensor: Tensor) -> HostReadback:
        """See `Device.read_back`."""
        return HostReadback(tensor)

    def stream(self) -> HostStream:
        """See `Device.stream`."""
        return self._stream

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """See `Device.on`."""
        return nullcontext()

    def event(self, timed: bool = False) -> HostEvent:
        """See `Device.event`."""
        return HostEvent()

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        *,
        name: str,
    ) -> None:
        """See `Device.launch`; it is done at once."""
        work()

    def capture(self, work: Callable[[], object]) -> Replay:
        """See `Device.capture`: it is done again by who did it."""

        def replay(reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = ()) -> None:
            work()

        return replay

    def seal(self) -> None:
        """The host's memory is the kernel's affair."""

    def memory(self) -> None:
        """See `Device.memory`."""


HOST = HostDevice()
