"""Memory for payloads on their way: made once for each pair, sent by whole buckets of rows.

A payload is laid out by its own number of rows and sent as if it had those of its bucket, so that
there are few sizes: views of them are made once, and a device that knows alone how many rows count
is asked nothing. What lies behind the rows is whatever was there.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.m2n.dist.channel import Work
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.slotted.payloads import StridedPayloads
from megainfer.m2n.slotted.views import PayloadViews

_TAGS = 32
"""Of a micro-batch: more than there are buckets."""


def buckets(capacity: int) -> tuple[int, ...]:
    """Powers of two below the most rows of a message, and that.

    >>> buckets(6)
    (1, 2, 4, 6)
    """
    powers = (1 << bits for bits in range(capacity.bit_length()))
    return (*(power for power in powers if power < capacity), capacity)


def bucket_of(rows: int, capacity: int) -> int:
    """
    >>> [bucket_of(rows, 6) for rows in (1, 2, 3, 4, 5, 6)]
    [1, 2, 4, 4, 6, 6]
    """
    return min(1 << (rows - 1).bit_length(), capacity)


LATE_TAG = 0
"""Of payloads for which nothing is posted before their bell."""


def tag_of(micro_batch: int, rows: int) -> int:
    """By which a pair tells payloads apart: a tag for each micro-batch and bucket, from 1 on.

    >>> [tag_of(0, 1), tag_of(0, 3), tag_of(0, 4), tag_of(0, 5), tag_of(1, 1)]
    [1, 3, 3, 4, 33]
    """
    return _TAGS * micro_batch + (rows - 1).bit_length() + 1


class Buffer:
    """Room for one payload.

    bytes_of: a payload's size by its rows. views: for kernels, of slot 0. last: the number of the
    payload that was last sent from here, counted by its pair; 0: none was. work: that sends it.
    """

    def __init__(self, geometry: Geometry, bytes_of: Callable[[int], int], device: Device) -> None:
        self._capacity = geometry.capacity
        size = bytes_of(geometry.capacity)
        with torch.inference_mode(False):  # it is written in any mode
            memory = device.empty((size,), torch.uint8)
            if device.is_host:
                memory.zero_()  # padding travels, and must not be what this process had there
            self._cuts = {rows: memory[: bytes_of(rows)] for rows in buckets(geometry.capacity)}
        self.payloads = StridedPayloads(memory, size)
        self.views = PayloadViews(self.payloads, geometry)
        self.last = 0
        self.work: Work | None = None

    def sent_of(self, rows: int) -> Tensor:
        """The bytes that travel of a payload of so many rows, at least one; uint8."""
        return self._cuts[bucket_of(rows, self._capacity)]


MakeBuffer = Callable[[], Buffer]


class SentBuffers:
    """What a node sends from to one peer: a buffer a micro-batch.

    One whose payload may still be on its way is left alone: after an epoch has ended the next
    dispatch comes before the last one has arrived. Then another takes its place, and it is used
    again later. most: spare ones that there may be.
    """

    def __init__(self, make: MakeBuffer, micro_batches: int, most: int) -> None:
        self._make = make
        self._current = [make() for _ in range(micro_batches)]
        self._spare: list[Buffer] = []
        self._most = most
        self._sent = 0
        self._arrived = 0
        self._last = [0] * micro_batches  # the number of each one's latest payload

    def __getitem__(self, micro_batch: int) -> Buffer:
        return self._current[micro_batch]

    def arrived(self, count: int) -> None:
        """The peer has so many of the payloads that were sent; another thread may say so."""
        self._arrived = count

    def sent(self, micro_batch: int, work: Work) -> None:
        """The micro-batch's payload is on its way."""
        self._sent += 1
        buffer = self._current[micro_batch]
        buffer.last, buffer.work = self._sent, work
        self._last[micro_batch] = self._sent

    def is_pressed(self, micro_batch: int) -> bool:
        """Whether an earlier payload of the micro-batch may still be on its way, to the same place:
        an epoch has ended."""
        return self._last[micro_batch] > self._arrived

    def renew(self, micro_batch: int) -> bool:
        """Whether the micro-batch has a buffer that may be written; there is none where a peer has
        left too many payloads on their way."""
        current = self._current[micro_batch]
        if not self._is_busy(current):
            return True
        free = next((buffer for buffer in self._spare if not self._is_busy(buffer)), None)
        if free is not None:
            self._spare.remove(free)
        elif len(self._spare) < self._most:
            free = self._make()
        if free is None:
            return False
        self._spare.append(current)
        self._current[micro_batch] = free
        return True

    def close(self) -> None:
        """What is on its way may be forgotten."""
        for buffer in (*self._current, *self._spare):
            buffer.work = None

    def _is_busy(self, buffer: Buffer) -> bool:
        return buffer.last > self._arrived


class ReceivedBuffers:
    """`payloads.Payloads` of a node's own slots: those that each peer's channel fills.

    They are the pair's: what a dead predecessor's channel might still write is no slot any more.
    """

    def __init__(self, micro_batches: int, device: Device) -> None:
        self._micro_batches = micro_batches
        self._device = device
        self._buffers: dict[int, Sequence[Buffer]] = {}

    def adopt(self, peer: int, buffers: Sequence[Buffer]) -> None:
        """From now on its slots are these, one a micro-batch."""
        self._buffers[peer] = buffers

    def of(self, slot: int) -> Buffer:
        peer, micro_batch = divmod(slot, self._micro_batches)
        return self._buffers[peer][micro_batch]

    def tensor(self, slot: int, offset: int, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        """See `payloads.Payloads.tensor`."""
        if shape[0] == 0:
            return self._device.empty(shape, dtype)
        return self.of(slot).payloads.tensor(0, offset, dtype, shape)
