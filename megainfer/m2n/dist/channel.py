"""One direction between two nodes: payloads arrive in the order in which they were sent."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Lock
from typing import Any, Protocol

from torch import Tensor

from megainfer.device import Device
from megainfer.errors import NodeDied

_FILE = re.compile(r"\[\S+\.(cc|h):\d+\] ")
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
        raise NodeDied(f"a payload was given up: {plain_words(error)}")


def _failure(work: Work) -> BaseException | None:
    """torch 2.11 has no way to hand over what `exception` returns, even where there is none (seen
    with NCCL on an H200)."""
    with suppress(TypeError):
        return work.exception()
    return None


class Channel:
    """Over a group of two ranks, of which the other is `peer`. One node sends, the other receives.

    keep: what has to live as long as the group. tags: whether payloads are told apart by tags, so
    that a receive can be posted before anybody knows whether its payload comes next. Raises
    NodeDied where the other end is gone.
    """

    def __init__(
        self,
        group: Group,
        peer: int,
        completion: Completion,
        device: Device,
        keep: Sequence[Any] = (),
        tags: bool = False,
    ) -> None:
        self._group = group
        self._peer = peer
        self._completed = completion
        self._device = device
        self._stream = device.stream()  # receives wait for no work of the node's own
        self._keep = keep
        self._tags = tags
        self._posted: dict[int, Work] = {}  # by tag
        self._posting = Lock()  # who expects and who receives are two threads

    def send(self, payload: Tensor, tag: int = 0) -> Work:
        """Send what it holds once the current stream has come this far; returns at once. tag: the
        receiver's for payloads of this size, to this place.

        Until it is known to have arrived nobody may write there, nor let go of the work: with it
        gloo forgets what the peer has yet to ask for.
        """
        try:
            return self._group.send([payload], self._peer, tag if self._tags else 0)
        except RuntimeError as error:
            raise NodeDied(f"a payload could not be sent: {plain_words(error)}") from error

    def await_sent(self, work: Work, seconds: float) -> None:
        """Blocks until it has left."""
        try:
            self._completed(work, seconds)
        except RuntimeError as error:
            raise NodeDied(f"a payload did not leave: {plain_words(error)}") from error

    def receive(self, payload: Tensor, seconds: float, tag: int = 0) -> None:
        """Blocks until it is filled, by the next payload that is sent with this tag, which has its
        size."""
        try:
            with self._posting:
                work = self._posted.pop(tag, None) or self._receiving(payload, tag)
            self._completed(work, seconds)
        except RuntimeError as error:
            raise NodeDied(f"a payload did not arrive: {plain_words(error)}") from error

    def expect(self, payload: Tensor, tag: int) -> None:
        """Be ready for such a one, which is to be `receive`d here: then it is sent at once, where
        else its sender would wait to hear that it is wanted. Nothing where there are no tags. Any
        thread may call it."""
        if not self._tags:
            return
        try:
            with self._posting:
                if tag not in self._posted:
                    self._posted[tag] = self._receiving(payload, tag)
        except RuntimeError as error:
            raise NodeDied(f"no payload can be received: {plain_words(error)}") from error

    def _receiving(self, payload: Tensor, tag: int) -> Work:
        with self._device.on(self._stream):
            return self._group.recv([payload], self._peer, tag if self._tags else 0)

    def abort(self) -> None:
        """End what is on its way: kernels of a device would wait for a dead peer for ever. Threads
        of the host don't, and gloo's connections end with the group."""
        if not self._device.is_host:
            self._group.abort()


def plain_words(error: BaseException) -> str:
    """Without torch's stack behind it, gloo's file before it and its advice after it.

    >>> plain_words(RuntimeError("[/gloo/pair.cc:5] Read error [::1]:49. This is typically caused"))
    'Read error [::1]:49'
    """
    line = str(error).partition("\n")[0].partition(". This is typically caused")[0]
    return _FILE.sub("", line)
