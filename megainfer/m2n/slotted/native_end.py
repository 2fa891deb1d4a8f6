"""The C++ object behind a port: its slots, its peers' slots, and what Python asks of both."""

import ctypes
import struct
import weakref
from collections.abc import Collection, Sequence
from mmap import mmap

import numpy as np

from megainfer.m2n.geometry import LINE_BYTES, Geometry
from megainfer.m2n.message import HEADER_BYTES, Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted import native_library as library
from megainfer.m2n.slotted.inbox import check_message, gone_back
from megainfer.m2n.slotted.mail import TO_ATTENTION, TO_EXPERT, Memory, Newcomer

_FOUND = struct.Struct("<qQ8xHHIQQHHIIIQQ")  # `Found` of inbox.h: slot, word, a header's fields
_HEADER_AT = 16


class NativeEnd:
    """One node's end; `handle` is what the library calls it. One caller at a time."""

    def __init__(self, seat: Seat, memory: Memory, is_attention: bool) -> None:
        geometry, m = seat.geometry, seat.geometry.micro_batches
        self.native = library.load()
        self.counters = library.NativeCounters()
        self._own = memory.own
        self._geometry = geometry
        self._kinds = TO_ATTENTION if is_attention else TO_EXPERT
        num_slots = m * (geometry.num_expert if is_attention else geometry.num_attention)
        stride = geometry.dispatch_slot_bytes if is_attention else geometry.reply_slot_bytes
        self._found = ctypes.create_string_buffer(num_slots * _FOUND.size)
        self._found_at = ctypes.addressof(self._found)
        self.members: Sequence[int] = range(len(memory.peers))
        self._peers = list(memory.peers)  # the library has no more than addresses
        self._offset = seat.index * m * stride  # of this node's slots in each peer's region
        outboxes = [self._outbox(region, -1) for region in self._peers]
        peers = (library.NativeOutbox * len(outboxes))(*outboxes)
        setup = library.Setup(
            library.layout_of(geometry),
            seat.index,
            seat.epoch,
            is_attention,
            address_of(memory.own),
            num_slots,
            peers,
            len(peers),
            ctypes.pointer(self.counters),
        )
        self.handle: int = self.native.megainfer_m2n_new(setup)
        weakref.finalize(self, self.native.megainfer_m2n_delete, self.handle)

    @property
    def awake_at(self) -> int:
        """The address of the word that tells senders whether to ring."""
        return address_of(self._own) + len(self._own) - LINE_BYTES

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    def news(self) -> bool:
        """See `mail.Mail.news`."""
        return bool(self.native.megainfer_m2n_news(self.handle))

    def awaits(self) -> bool:
        """See `inbox.Inbox.awaits`."""
        return bool(self.native.megainfer_m2n_awaits(self.handle))

    def scan(self, since: int | None) -> list[tuple[int, Header]]:
        """See `mail.Mail.scan`."""
        count = self.native.megainfer_m2n_scan(
            self.handle, -1 if since is None else since, self._found_at
        )
        if count < 0:
            self._refuse()
        return [self._message(i) for i in range(count)]

    def post(
        self, peer: int, kind: Kind, place: tuple[int, int, int], rows: int, size: int
    ) -> None:
        """Send what stands in the slot: `size` bytes. place: micro-batch, layer, sequence."""
        self.native.megainfer_m2n_post(self.handle, peer, kind, *place, rows, size)

    def set_epoch(self, epoch: int, members: Collection[int]) -> None:
        """See `mail.Mail.set_epoch`."""
        self.members = tuple(members)
        flags = bytes(peer in members for peer in range(len(self._peers)))
        self.native.megainfer_m2n_set_epoch(self.handle, epoch, flags)

    def admit(self, newcomer: Newcomer) -> None:
        """See `mail.Mail.admit`."""
        outbox = self._outbox(newcomer.region, newcomer.bell)
        self.native.megainfer_m2n_admit(self.handle, newcomer.index, outbox)
        self._peers[newcomer.index] = newcomer.region

    def dismiss(self, peer: int) -> None:
        """See `mail.Mail.dismiss`."""
        self.native.megainfer_m2n_admit(self.handle, peer, self._outbox(None, -1))
        self._peers[peer] = None

    def close(self) -> None:
        """See `mail.Mail.close`."""
        self.native.megainfer_m2n_close(self.handle)

    def _outbox(self, region: mmap | None, bell: int) -> library.NativeOutbox:
        if region is None:
            return library.NativeOutbox(None, None, -1)
        start = address_of(region)
        return library.NativeOutbox(start + self._offset, start + len(region) - LINE_BYTES, bell)

    def _message(self, index: int) -> tuple[int, Header]:
        slot, _, *fields = _FOUND.unpack_from(self._found, index * _FOUND.size)
        return slot, Header._make(fields)

    def _refuse(self) -> None:
        """Say what is wrong with the first message found."""
        slot, word, *_ = _FOUND.unpack_from(self._found)
        header = Header.unpack(self._found.raw[_HEADER_AT : _HEADER_AT + HEADER_BYTES])
        check_message(slot, word, header, self._geometry, self._kinds)
        raise gone_back(header)


def address_of(region: mmap) -> int:
    """Where it is mapped, for as long as it is."""
    address: int = np.frombuffer(region, dtype=np.uint8).ctypes.data
    return address
