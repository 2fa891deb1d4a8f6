"""Slots whose payloads are on a device, which says when they are there.

    word line                  header line     payload, in the device's memory
    +------+-------+---------+ +------------+  +--------------------------+
    | word | begun |  unused | | 64 bytes   |  | whole lines, see geometry|
    +------+-------+---------+ +------------+  +--------------------------+

The sender's host begins message s by `begun = 2s + 1` and writes its header when it enqueues the
work that fills the payload. After that work the device stores `word = 2s`, and nothing else. So the
message stands in the slot where `begun == word + 1`. A word that comes late, of a message that
another has superseded meanwhile, shows nothing, and no device ever writes a header.
"""

from collections.abc import Sequence
from mmap import mmap

import numpy as np
from torch import Tensor

from megainfer.device import Device
from megainfer.m2n.ipc.publisher import Place, Publisher
from megainfer.m2n.message import EPOCH_OFFSET, Header
from megainfer.m2n.packing import Packed
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import Newcomer
from megainfer.m2n.slotted.payloads import Payloads
from megainfer.m2n.slotted.slots import HEADER_OFFSET, WRITING, Slots, published_word
from megainfer.m2n.slotted.views import PayloadViews

_BEGUN_OFFSET = 8


class DeviceSlots(Slots):
    """A node's own slots, as it reads them. views: of the payloads of all of the region's slots."""

    def __init__(
        self,
        region: mmap,
        stride: int,
        first: int,
        count: int,
        views: PayloadViews,
        device: Device,
    ) -> None:
        super().__init__(region, stride, first, count, views.payloads)
        self.device = device
        self._views = views
        self._begun = self._each(_BEGUN_OFFSET, count)
        self._epochs = self._each(HEADER_OFFSET + EPOCH_OFFSET, count)

    def words(self) -> list[int]:
        """See `Slots.words`; what was begun and is yet to be published is being written."""
        words = self._words.copy()
        read: list[int] = np.where(self._begun == words | WRITING, words, self._begun).tolist()
        return read

    def header_bytes(self, slot: int, word: int) -> bytes | None:
        """See `Slots.header_bytes`."""
        copy = self._copy_header(slot)
        return copy if int(self._begun[slot]) == word | WRITING else None

    def awaited(self, epoch: int) -> bool:
        """See `Slots.awaited`. What somebody has begun who is gone is of an epoch that will end."""
        begun = self._begun.copy()
        missing = (begun != self._words | WRITING) & (begun != 0)
        return bool((missing & (self._epochs >= epoch)).any())

    def packed(self, slot: int, rows: int) -> Packed:
        """Views of a dispatch of R rows."""
        return self._views.packed(self._first + slot, rows)

    def reply(self, slot: int, rows: int) -> Tensor:
        """View of a reply's sums [R, D]."""
        return self._views.reply(self._first + slot, rows)


class PeerSlots(DeviceSlots):
    """Slots in a peer's memory, as it is sent messages: `publisher` shows them."""

    def __init__(
        self,
        region: mmap,
        stride: int,
        first: int,
        count: int,
        views: PayloadViews,
        publisher: Publisher,
    ) -> None:
        super().__init__(region, stride, first, count, views, publisher.device)
        self._publisher = publisher
        offsets = [self._base + slot * stride for slot in range(count)]
        self._places: Sequence[Place] = publisher.reach(region, offsets)

    def begin(self, slot: int, sequence: int) -> None:
        """See `Slots.begin`."""
        self._begun[slot] = published_word(sequence) | WRITING
        self._fence()

    def publish(self, slot: int, header: Header) -> None:
        """Write `header`, and show it and the payload after the work that fills that."""
        self._write_header(slot, header)
        shown = [self._views.whole(self._first + slot)] if header.rows else []
        self._publisher.publish(self._places[slot], published_word(header.sequence), shown)

    def close(self) -> None:
        """See `Slots.close`; waits for the device."""
        self._publisher.leave(self._memory)


def own_replies(seat: Seat, region: mmap, payloads: Payloads, device: Device) -> DeviceSlots:
    """All slots of an attention node's region; expert node n's are the m from n * m on."""
    geometry = seat.geometry
    count = geometry.num_expert * geometry.micro_batches
    views = PayloadViews(payloads, geometry)
    return DeviceSlots(region, geometry.reply_slot_bytes, 0, count, views, device)


def own_messages(seat: Seat, region: mmap, payloads: Payloads, device: Device) -> DeviceSlots:
    """All slots of an expert node's region; attention node i's are the m from i * m on."""
    geometry = seat.geometry
    count = geometry.num_attention * geometry.micro_batches
    views = PayloadViews(payloads, geometry)
    return DeviceSlots(region, geometry.dispatch_slot_bytes, 0, count, views, device)


def slots_at_expert(seat: Seat, publisher: Publisher, expert: Newcomer) -> PeerSlots:
    """An attention node's dispatch slots in an expert node's region."""
    return _slots_at(seat, publisher, expert, seat.geometry.dispatch_slot_bytes)


def slots_at_attention(seat: Seat, publisher: Publisher, attention: Newcomer) -> PeerSlots:
    """An expert node's reply slots in an attention node's region."""
    return _slots_at(seat, publisher, attention, seat.geometry.reply_slot_bytes)


def _slots_at(seat: Seat, publisher: Publisher, peer: Newcomer, stride: int) -> PeerSlots:
    assert peer.payloads is not None, "who has met without payloads was refused"
    m = seat.geometry.micro_batches
    views = PayloadViews(peer.payloads, seat.geometry)
    return PeerSlots(peer.region, stride, seat.index * m, m, views, publisher)
