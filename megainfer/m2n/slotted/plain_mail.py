"""Messages in Python: what runs without the C++ part, and what that is tested against."""

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from mmap import mmap

import torch
from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.inbox import Inbox, Looking
from megainfer.m2n.slotted.mail import TO_ATTENTION, TO_EXPERT, Memory, Newcomer, Tally
from megainfer.m2n.slotted.sleeper import OwnBell, PlainSleeper
from megainfer.m2n.slotted.slots import (
    Slots,
    dispatch_payload,
    dispatch_slots,
    reply_payload,
    reply_slots,
    slots_at_attention,
    slots_at_expert,
)


class Outbox:
    """A node's slots in each peer's memory. members: the peers that take part in the epoch."""

    def __init__(self, seat: Seat, peers: Sequence[Slots | None], counters: Tally) -> None:
        self._seat = seat
        self._epoch = seat.epoch
        self._peers = list(peers)
        self.members: Sequence[int] = range(len(peers))
        self._counters = counters

    def set_epoch(self, epoch: int, members: Collection[int]) -> None:
        self._epoch = epoch
        self.members = tuple(members)

    def admit(self, peer: int, slots: Slots | None) -> None:
        """In place of those that it had, which are written no more."""
        former, self._peers[peer] = self._peers[peer], slots
        if former is not None:
            former.close()

    def close(self) -> None:
        for peer in range(len(self._peers)):
            self.admit(peer, None)

    def begin(self, peer: int, micro_batch: int, sequence: int) -> Slots:
        """The peer's slots, of which this one is being written from here on."""
        slots = self._slots(peer)
        slots.begin(micro_batch, sequence)
        return slots

    def header(self, kind: Kind, micro_batch: int, layer: int, sequence: int) -> Header:
        """A header without payload, of a message that begins to be sent now."""
        geometry = self._seat.geometry
        return Header(
            kind=kind,
            dtype=geometry.dtype_code,
            layer=layer,
            epoch=self._epoch,
            sequence=sequence,
            micro_batch=micro_batch,
            source=self._seat.index,
            rows=0,
            top_k=geometry.top_k,
            hidden_size=geometry.hidden_size,
            length=0,
            sent_at=time.monotonic_ns(),
        )

    def publish(self, peer: int, header: Header) -> None:
        """Show what has been written since `begin`."""
        self._slots(peer).publish(header.micro_batch, header)
        self._counters.sent(header)

    def _slots(self, peer: int) -> Slots:
        slots = self._peers[peer]
        assert slots is not None, f"peer {peer} is a member, but was never met"
        return slots


SlotsIn = Callable[[Newcomer], Slots]
"""A node's slots in the region of a peer that it meets."""


class PlainMail:
    """`mail.Mail`: what both ends do with the slots they own and with theirs in each peer's memory,
    wherever their payloads are."""

    rings = False

    def __init__(
        self, seat: Seat, inbox: Looking, peers: Sequence[Slots | None], slots_in: SlotsIn
    ) -> None:
        self._seat = seat
        self._geometry = seat.geometry
        self._inbox = inbox
        self._own = inbox.slots
        self.device = inbox.slots.device
        self.counters = inbox.counters
        self._outbox = Outbox(seat, peers, self.counters)
        self.news, self.scan = inbox.news, inbox.scan
        self._slots_in = slots_in

    def set_epoch(self, epoch: int, members: Collection[int]) -> None:
        """See `mail.Mail.set_epoch`."""
        self._inbox.set_epoch(epoch)
        self._outbox.set_epoch(epoch, members)

    def admit(self, newcomer: Newcomer) -> None:
        """See `mail.Mail.admit`."""
        self._outbox.admit(newcomer.index, self._slots_in(newcomer))
        self._inbox.watch(newcomer)

    def dismiss(self, peer: int) -> None:
        """See `mail.Mail.dismiss`."""
        self._outbox.admit(peer, None)
        self._inbox.leave(peer)

    def sleeper(self, bell: OwnBell, spin_seconds: float) -> PlainSleeper:
        """See `mail.Mail.sleeper`."""
        return PlainSleeper(self.news, bell, spin_seconds)

    def close(self) -> None:
        """See `mail.Mail.close`."""
        self._outbox.close()


class PlainAttentionMail(PlainMail):
    """`mail.AttentionMail`."""

    @classmethod
    def over(cls, seat: Seat, memory: Memory) -> "PlainAttentionMail":
        """All of it in host memory."""
        geometry, m = seat.geometry, seat.geometry.micro_batches
        replies = reply_slots(memory.own, geometry, 0, geometry.num_expert * m)
        inbox = Inbox(replies, geometry, TO_ATTENTION, seat.epoch)
        return cls(seat, inbox, *_peers(memory, partial(slots_at_expert, seat)))

    def dispatch(
        self, micro_batch: int, layer: int, sequence: int, hidden: Tensor, parts: Sequence[Part]
    ) -> None:
        """See `mail.AttentionMail.dispatch`."""
        for part in parts:
            check_rows(part.rows, len(hidden))
        header = self._outbox.header(Kind.DISPATCH, micro_batch, layer, sequence)
        for node in self._outbox.members:
            slots = self._outbox.begin(node, micro_batch, sequence)
            self._outbox.publish(node, self._write(slots, header, hidden, parts[node]))

    def rest(self, micro_batch: int, sequence: int) -> None:
        """See `mail.AttentionMail.rest`."""
        header = self._outbox.header(Kind.REST, micro_batch, 0, sequence)
        for node in self._outbox.members:
            self._outbox.begin(node, micro_batch, sequence)
            self._outbox.publish(node, header)

    def combine(self, micro_batch: int, parts: Sequence[Part], out: Tensor) -> None:
        """See `mail.AttentionMail.combine`."""
        add_replies(self._own, self._geometry, micro_batch, parts, out)

    def error_text(self, header: Header) -> str:
        """See `mail.AttentionMail.error_text`."""
        slot = header.source * self._geometry.micro_batches + header.micro_batch
        return self._own.read_text(slot, header.length)

    def _write(self, slots: Slots, blank: Header, hidden: Tensor, part: Part) -> Header:
        """Fill the slot with the part; returns the header to publish it with."""
        rows = part.rows.numel()
        if not rows:
            return blank
        into, ids, weights = dispatch_payload(slots, blank.micro_batch, rows, self._geometry)
        torch.index_select(hidden, 0, part.rows, out=into)
        ids.copy_(part.local_ids)
        weights.copy_(part.weights)
        return blank._replace(rows=rows, length=self._geometry.dispatch_bytes(rows))


class PlainExpertMail(PlainMail):
    """`mail.ExpertMail`."""

    @classmethod
    def over(cls, seat: Seat, memory: Memory) -> "PlainExpertMail":
        """All of it in host memory."""
        geometry, m = seat.geometry, seat.geometry.micro_batches
        messages = dispatch_slots(memory.own, geometry, 0, geometry.num_attention * m)
        inbox = Inbox(messages, geometry, TO_EXPERT, seat.epoch)
        return cls(seat, inbox, *_peers(memory, partial(slots_at_attention, seat)))

    def payload(self, slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """See `mail.ExpertMail.payload`."""
        return *dispatch_payload(self._own, slot, rows, self._geometry), None

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mail.ExpertMail.reply_buffer`."""
        slots = self._begin(dispatch)
        return reply_payload(slots, dispatch.micro_batch, dispatch.num_rows, self._geometry)

    def reply(self, dispatch: Dispatch) -> None:
        """See `mail.ExpertMail.reply`."""
        self._begin(dispatch)
        rows = dispatch.num_rows
        header = self._answer(Kind.REPLY, dispatch)
        length = self._geometry.reply_bytes(rows)
        self._outbox.publish(dispatch.source, header._replace(rows=rows, length=length))

    def reply_error(self, dispatch: Dispatch, text: bytes) -> None:
        """See `mail.ExpertMail.reply_error`."""
        self._begin(dispatch).write_text(dispatch.micro_batch, text)
        header = self._answer(Kind.ERROR, dispatch)
        self._outbox.publish(dispatch.source, header._replace(length=len(text)))

    def _begin(self, dispatch: Dispatch) -> Slots:
        return self._outbox.begin(dispatch.source, dispatch.micro_batch, dispatch.sequence)

    def _answer(self, kind: Kind, dispatch: Dispatch) -> Header:
        return self._outbox.header(kind, dispatch.micro_batch, dispatch.layer, dispatch.sequence)


def _peers(memory: Memory, slots_at: Callable[[mmap], Slots]) -> tuple[list[Slots | None], SlotsIn]:
    """The slots in each peer's region now, and in those of peers that are met later."""
    now = [None if region is None else slots_at(region) for region in memory.peers]
    return now, lambda newcomer: slots_at(newcomer.region)


def add_replies(
    replies: Slots, geometry: Geometry, micro_batch: int, parts: Sequence[Part], out: Tensor
) -> None:
    """See `mail.AttentionMail.combine`."""
    for node, part in enumerate(parts):
        rows = part.rows.numel()
        if rows:
            check_rows(part.rows, len(out))
            slot = node * geometry.micro_batches + micro_batch
            reply = reply_payload(replies, slot, rows, geometry)
            out.index_add_(0, part.rows, reply.to(out.dtype))


def check_rows(rows: Tensor, tokens: int) -> None:
    if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < tokens):
        raise no_such_row(tokens)


def no_such_row(tokens: int) -> ProtocolError:
    return ProtocolError(f"a part names a row outside the {tokens} tokens of its step")
