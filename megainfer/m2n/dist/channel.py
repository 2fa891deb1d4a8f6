"""One direction between two nodes: payloads arrive in the order in which they were sent."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

from torch import Tensor

from megainfer.device import Device
from megainfer.errors import NodeDied

LOOK_SECONDS = 20e-6
"""Between two looks at work that a device has yet to complete."""


class Work(Protocol):
    """A send or receive that was posted."""

    def wait(self, timeout: timedelta) -> bool: ...

    def is_completed(self) -> bool: ...

    def exception(self) -> BaseException | None: ...


class Group(Protocol):
    """What is used of torch's `ProcessGroupGloo` and `ProcessGroupNCCL`; both raise RuntimeError
    where the other rank is gone."""

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> Work: ...

    def recv(self, tensors: list[Tensor], src: int, tag: int) -> Work: ...

    def abort(self) -> None: ...


Completion = Callable[[Work, float], None]
"""Returns when the work is done; raises NodeDied or RuntimeError where it isn't within so many
seconds."""


def waited(work: Work, seconds: float) -> None:
    """Gloo's `Completion`: its `is_completed` is False until `wait` has returned. A wait that takes
    too long closes the group's connection, so that nothing can be sent over it any more."""
    work.wait(timedelta(seconds=seconds))


def polled(work: Work, seconds: float) -> None:
    """NCCL's `Completion`: its `wait` is for streams, and would not block the host. Work that has
    failed, since the other process has ended for instance, is completed too: where torch can say
    so it is told here, else by the link, whose connection ends with the process."""
    deadline = time.monotonic() + seconds
    while not work.is_completed():
        if time.monotonic() > deadline:
            raise NodeDied(f"a payload was not there within {seconds:g} s")
        time.sleep(LOOK_SECONDS)  # NCCL tells nobody; the link's own thread looks
    if (error := _failure(work)) is not None:
        raise NodeDied(f"a payload was given up: {_first_line(error)}")


def _failure(work: Work) -> BaseException | None:
    """torch 2.11 has no way to hand over what `exception` returns, even where there is none (seen
    with NCCL on an H200)."""
    with suppress(TypeError):
        return work.exception()
    return None


class Channel:
    """Over a group of two ranks, of which the other is `peer`. One node sends, the other receives.

    keep: what has to live as long as the group. Raises NodeDied where the other end is gone.
    """

    def __init__(
        self,
        group: Group,
        peer: int,
        completion: Completion,
        device: Device,
        keep: Sequence[Any] = (),
    ) -> None:
        self._group = group
        self._peer = peer
        self._completed = completion
        self._device = device
        self._stream = device.stream()  # receives wait for no work of the node's own
        self._keep = keep

    def send(self, payload: Tensor) -> Work:
        """Send what it holds once the current stream has come this far; returns at once.

        Until it is known to have arrived nobody may write there, nor let go of the work: with it
        gloo forgets what the peer has yet to ask for.
        """
        try:
            return self._group.send([payload], self._peer, 0)
        except RuntimeError as error:
            raise NodeDied(f"a payload could not be sent: {_first_line(error)}") from error

    def await_sent(self, work: Work, seconds: float) -> None:
        """Blocks until it has left."""
        try:
            self._completed(work, seconds)
        except RuntimeError as error:
            raise NodeDied(f"a payload did not leave: {_first_line(error)}") from error

    def receive(self, payload: Tensor, seconds: float) -> None:
        """Blocks until it is filled, by the next payload that is sent, which has its size."""
        try:
            with self._device.on(self._stream):
                work = self._group.recv([payload], self._peer, 0)
            self._completed(work, seconds)
        except RuntimeError as error:
            raise NodeDied(f"a payload did not arrive: {_first_line(error)}") from error

    def abort(self) -> None:
        """End what is on its way: kernels of a device would wait for a dead peer for ever. Threads
        of the host don't, and gloo's connections end with the group."""
        if not self._device.is_host:
            self._group.abort()


def _first_line(error: BaseException) -> str:
    """Without the stack that torch puts behind it."""
    return str(error).partition("\n")[0]
