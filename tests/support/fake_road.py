"""The road `ipc` over a device that works late, in one process: its mails, slots and publisher,
with payloads in the fake device's memory.

The receiver's host sees no word before the device has stored it. What it has seen, it knows to be
done, and with it all that came before: so the work that it gives from then on comes after that.
"""

from collections.abc import Sequence
from functools import partial
from mmap import mmap
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megainfer.m2n.geometry import Geometry, PayloadRoom
from megainfer.m2n.ipc.mail import DeviceAttentionMail, DeviceExpertMail
from megainfer.m2n.ipc.publisher import Publisher
from megainfer.m2n.ipc.slots import DeviceSlots, slots_at_attention, slots_at_expert
from megainfer.m2n.local import LocalNode, LocalWire
from megainfer.m2n.mailbox import Part
from megainfer.m2n.packing import Packed, TorchPacking
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.mail import Newcomer
from tests.support.fake_device import FakeDevice
from tests.support.happens_before import Clock, Race, merge


class FakePayloads:
    """`payloads.Payloads`. Each slot is memory of its own, whose uses are watched apart."""

    def __init__(self, device: FakeDevice, room: PayloadRoom) -> None:
        self._device = device
        self._slots = [device.empty((room.stride // 4,), torch.float32) for _ in range(room.slots)]

    def tensor(self, slot: int, offset: int, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        if not shape[0]:
            return self._device.empty(shape, dtype)
        flat = self._slots[slot].view(dtype)
        return torch.as_strided(flat, shape, (shape[1], 1), offset // dtype.itemsize)


class FakePlace(NamedTuple):
    region: mmap
    offset: int


class FakeWords:
    """`publisher.HostWords`. stored: what has come before each word that stands."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._reached: set[int] = set()
        self.stored: dict[FakePlace, Clock] = {}

    def reach(self, region: mmap, offsets: Sequence[int]) -> list[FakePlace]:
        self._reached.add(id(region))
        return [FakePlace(region, offset) for offset in offsets]

    def leave(self, region: mmap) -> None:
        self._device.synchronize()
        self._reached.discard(id(region))

    def store(self, words: Sequence[tuple[FakePlace, int]]) -> None:
        for place, word in words:
            if id(place.region) not in self._reached:
                raise Race("a device stores into memory that was given back")
            np.ndarray((1,), np.uint64, place.region, place.offset)[0] = word
            self.stored[place] = self._device.doing


class FakeSlots(DeviceSlots):
    """All of a node's own slots. words: what stores into them."""

    def __init__(
        self,
        region: mmap,
        stride: int,
        count: int,
        payloads: FakePayloads,
        device: FakeDevice,
        words: FakeWords,
    ) -> None:
        super().__init__(region, stride, 0, count, payloads, device)
        self._fake, self._stored = device, words.stored

    def words(self) -> list[int]:
        self._fake.advance()  # a look takes time, in which the device may go on
        return super().words()

    def header_bytes(self, slot: int, word: int) -> bytes | None:
        header = super().header_bytes(slot, word)
        if header is not None:
            self.saw(slot)
        return header

    def saw(self, slot: int) -> None:
        """The host has seen this slot's word."""
        merge(self._fake.host, self._stored[FakePlace(self._memory, slot * self._stride)])


class PoisoningPacking(TorchPacking):
    """Behind the rows that count there is poison, since nobody may read it."""

    def pack(
        self, device: FakeDevice, hidden: Tensor, parts: Sequence[Part], into: Sequence[Packed]
    ) -> None:
        super().pack(device, hidden, parts, into)
        written = [packed.hidden for packed in into]
        counts = [packed.count for packed in into]
        device.launch(partial(_poison, into), counts, written, name="pack")


def _poison(into: Sequence[Packed]) -> None:
    for packed in into:
        packed.hidden[int(packed.count) :] = torch.nan


class FakeNode(LocalNode):
    """A node's memory: slots in the host's, payloads in the device's."""

    def __init__(self, device: FakeDevice, region_bytes: int, room: PayloadRoom) -> None:
        super().__init__()
        self.region = mmap(-1, region_bytes)
        self.payloads = FakePayloads(device, room)

    def seen_by_others(self, index: int) -> Newcomer:
        return Newcomer(index, self.region, payloads=self.payloads)


class FakeHub:
    """The nodes of an instance, all over one device.

    attention_slots, expert_slots: their own, of each port that was made.
    """

    def __init__(self, geometry: Geometry, device: FakeDevice) -> None:
        self._geometry = geometry = geometry.on_devices
        self._device, self.words = device, FakeWords(device)
        self.attention_slots: list[FakeSlots] = []
        self.expert_slots: list[FakeSlots] = []
        size, room = geometry.attention_region_bytes, geometry.attention_payloads
        self._attention = [FakeNode(device, size, room) for _ in range(geometry.num_attention)]
        size, room = geometry.expert_region_bytes, geometry.expert_payloads
        self._experts = [FakeNode(device, size, room) for _ in range(geometry.num_expert)]

    def attention_port(self, index: int, epoch: int = 0) -> SlotAttentionPort:
        own, seat = self._attention[index], Seat(self._geometry, index, epoch)
        publisher = Publisher(self._device, self.words)
        slots_in = partial(slots_at_expert, seat, publisher)
        peers = [slots_in(node.seen_by_others(n)) for n, node in enumerate(self._experts)]
        slots = self._slots(own, self._geometry.reply_slot_bytes, len(peers))
        self.attention_slots.append(slots)
        mail = DeviceAttentionMail(seat, slots, peers, slots_in, publisher, PoisoningPacking())
        return SlotAttentionPort(seat, mail, LocalWire(own, self._experts))

    def expert_port(self, index: int, epoch: int = 0) -> SlotExpertPort:
        own, seat = self._experts[index], Seat(self._geometry, index, epoch)
        publisher = Publisher(self._device, self.words)
        slots_in = partial(slots_at_attention, seat, publisher)
        peers = [slots_in(node.seen_by_others(i)) for i, node in enumerate(self._attention)]
        slots = self._slots(own, self._geometry.dispatch_slot_bytes, len(peers))
        self.expert_slots.append(slots)
        mail = DeviceExpertMail(seat, slots, peers, slots_in)
        return SlotExpertPort(seat, mail, LocalWire(own, self._attention))

    def _slots(self, own: FakeNode, stride: int, peers: int) -> FakeSlots:
        count = peers * self._geometry.micro_batches
        return FakeSlots(own.region, stride, count, own.payloads, self._device, self.words)
