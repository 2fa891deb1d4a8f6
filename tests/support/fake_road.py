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

from megainfer.device import Device
from megainfer.m2n.geometry import Geometry, PayloadRoom
from megainfer.m2n.ipc.slots import DeviceSlots
from megainfer.m2n.mailbox import Part
from megainfer.m2n.packing import Packed, TorchPacking
from megainfer.m2n.roads import Seat
from tests.support.fake_device import FakeDevice
from tests.support.happens_before import Clock, Race, merge
from tests.support.twin_hub import TwinHub, TwinNode


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
    """All of a node's own slots, as `like` has them. words: what stores into them."""

    def __init__(self, like: DeviceSlots, device: FakeDevice, words: FakeWords) -> None:
        count = len(like.words())
        super().__init__(like._memory, like._stride, 0, count, like._views, device)
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
        self, device: Device, hidden: Tensor, parts: Sequence[Part], into: Sequence[Packed]
    ) -> None:
        super().pack(device, hidden, parts, into)
        written = [packed.hidden for packed in into]
        counts = [packed.count for packed in into]
        device.launch(partial(_poison, into), counts, written, name="pack")


def _poison(into: Sequence[Packed]) -> None:
    for packed in into:
        packed.hidden[int(packed.count) :] = torch.nan


class FakeHub(TwinHub):
    """The nodes of an instance, all over one device, which works late.

    attention_slots, expert_slots: their own, of each port that was made.
    """

    def __init__(self, geometry: Geometry, device: FakeDevice) -> None:
        self.late, self.late_words = device, FakeWords(device)
        self.attention_slots: list[FakeSlots] = []
        self.expert_slots: list[FakeSlots] = []
        super().__init__(geometry, PoisoningPacking(), device, self.late_words)

    def payloads(self, room: PayloadRoom) -> FakePayloads:
        return FakePayloads(self.late, room)

    def own_replies(self, seat: Seat, own: TwinNode) -> FakeSlots:
        slots = super().own_replies(seat, own)
        self.attention_slots.append(FakeSlots(slots, self.late, self.late_words))
        return self.attention_slots[-1]

    def own_messages(self, seat: Seat, own: TwinNode) -> FakeSlots:
        slots = super().own_messages(seat, own)
        self.expert_slots.append(FakeSlots(slots, self.late, self.late_words))
        return self.expert_slots[-1]
