"""Groups of two ranks in one process, which are polled as NCCL's are, and fail when told to."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch import Tensor

from megainfer.device import Device
from megainfer.device.host import HostDevice
from megainfer.m2n.dist.channel import Completion, Group, polled

BROKEN = RuntimeError("NCCL error: remote process exited\nand a stack that nobody wants to read")


class PretendGpu(HostDevice):
    """The host, as nodes believe a GPU to be: they look at no values, and all rows are counted."""

    name = "pretended"
    is_host = False


@dataclass
class Pipe:
    """What is on its way. lag: looks that a send or receive takes to be done. Broken: neither end
    can post any more. Stuck: what was posted is never done. Died: it is done at once, with an
    exception, as that of NCCL is when the other process has ended. Mute: nobody can ask for it,
    as with torch 2.11. awaited: set by each receive."""

    lag: int = 0
    broken: bool = False
    stuck: bool = False
    died: bool = False
    mute: bool = False
    aborted: threading.Event = field(default_factory=threading.Event)
    payloads: deque[Tensor] = field(default_factory=deque)
    awaited: threading.Event = field(default_factory=threading.Event)


class FakeWork:
    """aborted: whether this end has given up, by which work is done as if it had succeeded."""

    def __init__(
        self,
        pipe: Pipe,
        done: Callable[[], bool],
        aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pipe, self._done, self._aborted = pipe, done, aborted
        self._looks = 0

    def wait(self, timeout: timedelta) -> bool:
        raise AssertionError("NCCL's wait is for streams")

    def is_completed(self) -> bool:
        self._looks += 1
        if self._aborted() or self._pipe.died:
            return True
        return not self._pipe.stuck and self._looks > self._pipe.lag and self._done()

    def exception(self) -> BaseException | None:
        if self._pipe.mute:
            raise TypeError("Unable to convert function return value to a Python type!")
        return BROKEN if self._pipe.died and not self._aborted() else None


class FakeGroup:
    """`channel.Group`."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._aborted = False

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> FakeWork:
        self._check()
        (payload,) = tensors
        self._pipe.payloads.append(payload)  # read when it is taken, as a blocked kernel would

        def taken() -> bool:
            return not any(payload is other for other in self._pipe.payloads)

        return FakeWork(self._pipe, taken, lambda: self._aborted)

    def recv(self, tensors: list[Tensor], src: int, tag: int) -> FakeWork:
        self._check()
        self._pipe.awaited.set()
        return FakeWork(self._pipe, lambda: self._take(tensors[0]), lambda: self._aborted)

    def abort(self) -> None:
        """Ends this end's work, and by that the other's."""
        self._aborted = True
        self._pipe.aborted.set()
        self._pipe.died = True

    def _check(self) -> None:
        if self._pipe.broken:
            raise BROKEN

    def _take(self, into: Tensor) -> bool:
        if not self._pipe.payloads:
            return False
        payload = self._pipe.payloads[0]
        assert payload.numel() == into.numel(), "both ends go by the same bucket"
        into.copy_(payload)
        self._pipe.payloads.popleft()
        return True


class FakeGroups:
    """`groups.Groups` of all nodes of a test. pipes: in the order in which pairs were made, each
    pair's to its expert node before that from it."""

    kind = "nccl"
    tags = False

    def __init__(self, device: Device) -> None:
        self.device = device
        self.completion: Completion = polled
        self.pipes: list[Pipe] = []
        self._lock = threading.Lock()

    def make(self, store: Any, rank: int) -> Group:
        """See `Groups.make`: rank 0 tells rank 1 by the store, as NCCL's do."""
        if rank == 0:
            with self._lock:
                self.pipes.append(Pipe())
                number = len(self.pipes) - 1
            store.set("id", str(number))
        return FakeGroup(self.pipes[int(store.get("id"))])

    def close(self) -> None:
        """Nothing is held."""
