"""A road over a device that works late: payloads in its memory, words and headers in the host's.

What fills a slot and what publishes it is work in the sender's current stream, so the receiver's
host sees no word before that is done. An event says what the receiver's own work comes after; no
host waits. The rules of the ports are those of every road.
"""

from collections.abc import Sequence
from functools import partial
from mmap import mmap

import torch
from torch import Tensor

from megainfer.m2n.geometry import Geometry
from megainfer.m2n.local import LocalNode, LocalWire
from megainfer.m2n.mailbox import Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.plain_mail import PlainAttentionMail, PlainExpertMail
from megainfer.m2n.slotted.slots import Slots, dispatch_payload, reply_payload
from tests.support.fake_device import FakeDevice


class Region(LocalNode):
    """A node's slots on both memories; published: after the work that filled each of them last."""

    def __init__(self, geometry: Geometry, device: FakeDevice, stride: int, peers: int) -> None:
        super().__init__()
        self.m, self.capacity = geometry.micro_batches, geometry.capacity
        self.device, self.stride, count = device, stride, peers * self.m
        self.memory = mmap(-1, count * stride)
        self.payloads: dict[tuple[int, torch.dtype, bool], Tensor] = {}
        self.published = [device.event() for _ in range(count)]


class FakeSlots(Slots):
    """Those of a region that peer `peer` may fill; None: all."""

    def __init__(self, region: Region, peer: int | None = None) -> None:
        first, count = (0, len(region.published)) if peer is None else (peer * region.m, region.m)
        super().__init__(region.memory, region.stride, first, count)
        self._region, self._first, self.device = region, first, region.device

    def words(self) -> list[int]:
        self.device.advance()  # a look takes time, in which the device may go on
        return super().words()

    def begin(self, slot: int, sequence: int) -> None:
        """It begins when the device comes to it."""

    def publish(self, slot: int, header: Header) -> None:
        def work() -> None:
            super(FakeSlots, self).begin(slot, header.sequence)
            super(FakeSlots, self).publish(slot, header)
            self._region.rang = True

        number, region = self._first + slot, self._region
        shown = [t for key, t in region.payloads.items() if key[0] == number and header.rows]
        self.device.launch(work, shown, [], name=f"publish {Kind(header.kind).name}")
        region.published[number].record()

    def tensor(self, slot: int, offset: int, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        """Of the device; what the current stream is given from here on comes after `publish`."""
        if not shape[0]:  # all of it lies at offset 0
            return self.device.empty(shape, dtype)
        number, region = self._first + slot, self._region
        region.published[number].wait()
        key = number, dtype, offset > 0
        if key not in region.payloads:
            region.payloads[key] = self.device.empty((region.capacity, shape[1]), dtype)
        return region.payloads[key][: shape[0]]

    def count(self, slot: int) -> Tensor:
        return self.tensor(slot, 0, torch.int32, (1, 1))[0]


class FakeAttentionMail(PlainAttentionMail):
    def dispatch(
        self, micro_batch: int, layer: int, sequence: int, hidden: Tensor, parts: Sequence[Part]
    ) -> None:
        header = self._outbox.header(Kind.DISPATCH, micro_batch, layer, sequence)
        for node, part in enumerate(parts):
            rows = part.rows.numel()
            self._reply(node, micro_batch, rows)  # once it is there, nobody reads the slot
            slots = self._outbox.begin(node, micro_batch, sequence)
            payload = dispatch_payload(slots, micro_batch, rows, self._geometry)
            into = [*payload, slots.count(micro_batch)]
            reads = [tensor for tensor in (hidden, *part) if tensor is not None]
            self.device.launch(partial(_pack, hidden, part, into), reads, into, name="pack")
            length = self._geometry.dispatch_bytes(rows)
            self._outbox.publish(node, header._replace(rows=rows, length=length))

    def combine(self, micro_batch: int, parts: Sequence[Part], out: Tensor) -> None:
        for node, part in enumerate(parts):
            reply = self._reply(node, micro_batch, part.rows.numel())
            reads = [tensor for tensor in (reply, *part) if tensor is not None]
            self.device.launch(partial(_add, part, reply, out), reads, [out], name="add")

    def _reply(self, node: int, micro_batch: int, rows: int) -> Tensor:
        slot = node * self._geometry.micro_batches + micro_batch
        return reply_payload(self._own, slot, rows, self._geometry)


class FakeExpertMail(PlainExpertMail):
    def payload(self, slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, ids, weights, _ = super().payload(slot, rows)
        return hidden, ids, weights, self._own.count(slot)


def _counted(part: Part) -> Tensor:
    """The rows that count."""
    return part.rows if part.count is None else part.rows[: int(part.count)]


def _pack(hidden: Tensor, part: Part, into: Sequence[Tensor]) -> None:
    rows, (packed, ids, weights, count) = _counted(part), into
    packed.fill_(torch.nan)[: len(rows)] = hidden[rows]  # nobody may read behind them
    count.fill_(len(rows))
    ids.copy_(part.local_ids)
    weights.copy_(part.weights)


def _add(part: Part, reply: Tensor, out: Tensor) -> None:
    rows = _counted(part)
    out.index_add_(0, rows, reply[: len(rows)].to(out.dtype))


class FakeHub:
    """The nodes of an instance, all over one device."""

    def __init__(self, geometry: Geometry, device: FakeDevice) -> None:
        self._geometry = geometry
        m, n = geometry.num_attention, geometry.num_expert
        replies, messages = geometry.reply_slot_bytes, geometry.dispatch_slot_bytes
        self._attention = [Region(geometry, device, replies, n) for _ in range(m)]
        self._experts = [Region(geometry, device, messages, m) for _ in range(n)]

    def attention_port(self, index: int, epoch: int = 0) -> SlotAttentionPort:
        own, peers, seat = self._attention[index], self._experts, Seat(self._geometry, index, epoch)
        mail = FakeAttentionMail(seat, FakeSlots(own), [FakeSlots(peer, index) for peer in peers])
        return SlotAttentionPort(seat, mail, LocalWire(own, peers))

    def expert_port(self, index: int, epoch: int = 0) -> SlotExpertPort:
        own, peers, seat = self._experts[index], self._attention, Seat(self._geometry, index, epoch)
        mail = FakeExpertMail(seat, FakeSlots(own), [FakeSlots(peer, index) for peer in peers])
        return SlotExpertPort(seat, mail, LocalWire(own, peers))
