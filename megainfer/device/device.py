"""The contract: a device, its streams and its events."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, dtype


class Stream(Protocol):
    """Work that is done in the order in which it was given."""


class Event(Protocol):
    """A point in the work of the stream that was current when it was recorded."""

    def record(self) -> None:
        """After all that the current stream was given so far; a later call moves it."""

    def done(self) -> bool:
        """Whether the work before it has been done; never blocks. True before it is recorded."""

    def wait(self) -> None:
        """What the current stream is given from here on begins after it; never blocks the host."""

    def synchronize(self) -> None:
        """Block the host until it is done."""

    def seconds_since(self, earlier: Self) -> float:
        """The device's own seconds between two events that were made to be timed and are done."""


class Readback(Protocol):
    """Values on their way to the host."""

    def done(self) -> bool:
        """Whether `take` would return at once; never blocks."""

    def take(self) -> Tensor:
        """The values in host memory; blocks until they are there."""


class Replay(Protocol):
    """Gives what was recorded to the current stream."""

    def __call__(self, reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = ()) -> object:
        """reads, writes: as of `Device.launch`, memory that it finds this time by addresses which
        were not there, or were others, when it was recorded."""


class MemoryUse(NamedTuple):
    """Bytes of a device. held: what this process has taken. used: what its tensors have of that.
    late: how often it took more since it was sealed."""

    held: int
    used: int
    late: int


class Chip(NamedTuple):
    """Which kind of processor a device is, by which kernels choose their tiles. name: `NVIDIA
    H200`. architecture: 90 for sm_90. Empty and 0 where kernels are interpreted."""

    name: str
    architecture: int


class Device(Protocol):
    """Where tensors live and kernels run. Methods that take or give work act on the current
    stream, which `on` chooses for the calling thread."""

    @property
    def name(self) -> str:
        """`cpu`, `cuda:3`."""

    @property
    def torch(self) -> torch.device:
        """What `device=` of torch wants."""

    @property
    def is_host(self) -> bool:
        """Work is done when the call that gave it returns: events are done at once, and memory is
        the host's own."""

    @property
    def processors(self) -> int:
        """Multiprocessors, each of which runs programs of its own."""

    @property
    def chip(self) -> Chip:
        """What it is."""

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        """Memory of the device that holds whatever was there."""

    def upload(self, host: Tensor) -> Tensor:
        """The values of a host tensor that nobody changes any more; on the host, that tensor."""

    def fill(self, to: Tensor, host: Tensor) -> None:
        """The values of a host tensor that nobody changes any more, into memory of the device that
        is contiguous and alike; they are few."""

    def read_back(self, tensor: Tensor) -> Readback:
        """The values that `tensor` has once the current stream has come this far."""

    def stream(self) -> Stream:
        """A new stream."""

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """Within it, `stream` is the current one."""

    def event(self, timed: bool = False) -> Event:
        """A new event; `timed` if `seconds_since` will be asked."""

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        *,
        name: str,
    ) -> None:
        """Call what gives a kernel to the current stream that isn't torch's.

        reads, writes: memory of the device that it uses, which those who prove an order want to
        know; the same tensor may be in both.
        """

    def capture(self, work: Callable[[], object]) -> Replay:
        """Record what `work` would give to the current stream, without giving it; what is returned
        gives all of it to the stream that is current then.

        It uses the memory that it used when it was recorded. What `work` takes while it is recorded
        may be taken again by what is recorded later: it holds nothing from one replay to the next.
        `work` was done before, uploads nothing, and reads nothing back.
        """

    def seal(self) -> None:
        """All that will be needed was used once: memory that is taken from here on is counted as
        late, and refused by a device that is strict."""

    def memory(self) -> MemoryUse | None:
        """What this process has of its memory; None on the host, where others count."""
