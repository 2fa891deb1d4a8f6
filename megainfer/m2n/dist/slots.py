"""Slots at both ends of a pair: a node's own, which its links fill, and what it sends from."""

from mmap import mmap
from typing import Protocol

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.m2n.dist.buffers import ReceivedBuffers, SentBuffers
from megainfer.m2n.geometry import ERROR_ROOM_BYTES, LINE_BYTES, Geometry
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.packing import Packed
from megainfer.m2n.slotted.slots import Slots

STRIDE = 2 * LINE_BYTES + ERROR_ROOM_BYTES
"""Texts, laid out as elsewhere; headers wait in `inbox.Arrivals`, and payloads are in buffers."""


class OwnSlots(Slots):
    """What its node reads: texts of errors in memory of its own, payloads in its links'."""

    def __init__(self, memory: mmap, count: int, buffers: ReceivedBuffers, device: Device) -> None:
        super().__init__(memory, STRIDE, 0, count, buffers)
        self.device = device
        self._buffers = buffers

    def packed(self, slot: int, rows: int) -> Packed:
        """See `packed_mail.PackedSlots.packed`."""
        return self._buffers.of(slot).views.packed(0, rows)

    def reply(self, slot: int, rows: int) -> Tensor:
        """See `packed_mail.PackedSlots.reply`."""
        return self._buffers.of(slot).views.reply(0, rows)


class Sending(Protocol):
    """One peer, as it is sent messages."""

    sent: SentBuffers

    def prepare(self, micro_batch: int) -> None:
        """Its buffer is about to be written."""

    def send(self, header: Header, text: bytes) -> None:
        """The payload that its buffer holds, if it has rows; else a text, if it is an error."""


class SentSlots(Slots):
    """What a node writes for one peer: publishing it is sending it."""

    def __init__(self, geometry: Geometry, peer: Sending, device: Device) -> None:
        count = geometry.micro_batches
        self.region = mmap(-1, count * STRIDE)
        super().__init__(self.region, STRIDE, 0, count, _NoPayloads())
        self.device = device
        self._peer = peer

    def begin(self, slot: int, sequence: int) -> None:
        """See `Slots.begin`."""
        self._peer.prepare(slot)

    def publish(self, slot: int, header: Header) -> None:
        """See `Slots.publish`."""
        text = b""
        if header.kind == Kind.ERROR:
            text = self.read_text(slot, header.length).encode()
        self._peer.send(header, text)

    def packed(self, slot: int, rows: int) -> Packed:
        """See `packed_mail.PackedSlots.packed`."""
        return self._peer.sent[slot].views.packed(0, rows)

    def reply(self, slot: int, rows: int) -> Tensor:
        """See `packed_mail.PackedSlots.reply`."""
        return self._peer.sent[slot].views.reply(0, rows)


class _NoPayloads:
    """`payloads.Payloads` where there are views only."""

    def tensor(self, slot: int, offset: int, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        raise AssertionError("a mail of packed slots asks for views")
