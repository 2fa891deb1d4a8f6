"""The road `ipc` without a GPU, in one process: the nodes' device is the host, or another, and what
its streams would store it stores when it comes to it."""

from collections.abc import Sequence
from functools import partial
from mmap import mmap

import torch

from megainfer.device import HOST, Device
from megainfer.m2n.geometry import Geometry, PayloadRoom
from megainfer.m2n.ipc.mail import DeviceAttentionMail, DeviceExpertMail
from megainfer.m2n.ipc.publisher import HostWords, Publisher
from megainfer.m2n.ipc.slots import (
    DeviceSlots,
    own_messages,
    own_replies,
    slots_at_attention,
    slots_at_expert,
)
from megainfer.m2n.local import LocalNode, LocalWire
from megainfer.m2n.packing import TORCH_PACKING, Packing
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.inbox import Inbox
from megainfer.m2n.slotted.mail import TO_ATTENTION, TO_EXPERT, Newcomer
from megainfer.m2n.slotted.payloads import Payloads, StridedPayloads
from tests.support.twin_road import TwinWords

POISON = 255
"""A byte of which NaNs of every dtype are made."""


class TwinNode(LocalNode):
    """A node's memory: slots in the host's, payloads in the device's."""

    def __init__(self, region_bytes: int, payloads: Payloads) -> None:
        super().__init__()
        self.region, self.payloads = mmap(-1, region_bytes), payloads

    def seen_by_others(self, index: int) -> Newcomer:
        return Newcomer(index, self.region, payloads=self.payloads)


class TwinHub:
    """The nodes of an instance; `local.LocalHub` of this road."""

    def __init__(
        self,
        geometry: Geometry,
        packing: Packing = TORCH_PACKING,
        device: Device = HOST,
        words: HostWords | None = None,
    ) -> None:
        self._geometry = geometry = geometry.on_devices
        self._packing, self._device, self._words = packing, device, words or TwinWords()
        size, room = geometry.attention_region_bytes, geometry.attention_payloads
        self._attention = self._nodes(geometry.num_attention, size, room)
        size, room = geometry.expert_region_bytes, geometry.expert_payloads
        self._experts = self._nodes(geometry.num_expert, size, room)

    def attention_port(self, index: int, epoch: int = 0) -> SlotAttentionPort:
        own, seat = self._attention[index], Seat(self._geometry, index, epoch)
        publisher = Publisher(self._device, self._words)
        slots_in = partial(slots_at_expert, seat, publisher)
        peers = [slots_in(node.seen_by_others(n)) for n, node in enumerate(self._experts)]
        inbox = Inbox(self.own_replies(seat, own), self._geometry, TO_ATTENTION, epoch)
        mail = DeviceAttentionMail(seat, inbox, peers, slots_in, publisher, self._packing)
        return SlotAttentionPort(seat, mail, LocalWire(own, self._experts))

    def expert_port(self, index: int, epoch: int = 0) -> SlotExpertPort:
        own, seat = self._experts[index], Seat(self._geometry, index, epoch)
        slots_in = partial(slots_at_attention, seat, Publisher(self._device, self._words))
        peers = [slots_in(node.seen_by_others(i)) for i, node in enumerate(self._attention)]
        inbox = Inbox(self.own_messages(seat, own), self._geometry, TO_EXPERT, epoch)
        mail = DeviceExpertMail(seat, inbox, peers, slots_in)
        return SlotExpertPort(seat, mail, LocalWire(own, self._attention))

    def payloads(self, room: PayloadRoom) -> Payloads:
        """Of one node, poisoned."""
        memory = torch.full((room.bytes,), POISON, dtype=torch.uint8)
        return StridedPayloads(memory, room.stride)

    def own_replies(self, seat: Seat, own: TwinNode) -> DeviceSlots:
        return own_replies(seat, own.region, own.payloads, self._device)

    def own_messages(self, seat: Seat, own: TwinNode) -> DeviceSlots:
        return own_messages(seat, own.region, own.payloads, self._device)

    def _nodes(self, count: int, region_bytes: int, room: PayloadRoom) -> Sequence[TwinNode]:
        return [TwinNode(region_bytes, self.payloads(room)) for _ in range(count)]
