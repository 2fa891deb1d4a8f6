"""Messages in C++: one call to send a dispatch to all expert nodes, one to look, one to add up."""

from collections.abc import Sequence
from functools import lru_cache, partial
from mmap import mmap

from torch import Tensor

from megainfer.device import HOST, Device
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import Memory, Newcomer
from megainfer.m2n.slotted.native_end import NativeEnd
from megainfer.m2n.slotted.native_parts import SUMS, Parts
from megainfer.m2n.slotted.native_sleeper import NativeSleeper
from megainfer.m2n.slotted.plain_mail import add_replies, no_such_row
from megainfer.m2n.slotted.slots import (
    Slots,
    dispatch_payload,
    dispatch_slots,
    reply_payload,
    reply_slots,
    slots_at_attention,
    torch_dtype,
)

_KEPT_VIEWS = 256
"""Steps repeat their row counts, and making a view takes longer than finding it."""


class NativeAttentionMail:
    """`mail.AttentionMail`."""

    device: Device = HOST

    def __init__(self, seat: Seat, memory: Memory) -> None:
        geometry, m = seat.geometry, seat.geometry.micro_batches
        self.end = end = NativeEnd(seat, memory, is_attention=True)
        self.rings = memory.rings
        self.counters = end.counters
        self._dtype = torch_dtype(geometry)
        self._parts = Parts(geometry.num_expert)
        self._replies = reply_slots(memory.own, geometry, 0, geometry.num_expert * m)
        self.news, self.scan = end.news, end.scan
        self.set_epoch, self.close = end.set_epoch, end.close
        self.admit, self.dismiss = end.admit, end.dismiss
        self.sleeper = partial(NativeSleeper, end)

    def dispatch(
        self, micro_batch: int, layer: int, sequence: int, hidden: Tensor, parts: Sequence[Part]
    ) -> None:
        """See `mail.AttentionMail.dispatch`."""
        self._parts.fill(parts)
        hidden = hidden.contiguous()
        tokens = len(hidden)
        end = self.end
        if not end.native.megainfer_m2n_dispatch(
            end.handle,
            micro_batch,
            layer,
            sequence,
            hidden.data_ptr(),
            tokens,
            self._parts.address,
        ):
            raise no_such_row(tokens)

    def rest(self, micro_batch: int, sequence: int) -> None:
        """See `mail.AttentionMail.rest`."""
        for node in self.end.members:
            self.end.post(node, Kind.REST, (micro_batch, 0, sequence), 0, 0)

    def combine(self, micro_batch: int, parts: Sequence[Part], out: Tensor) -> None:
        """See `mail.AttentionMail.combine`."""
        kind = SUMS.get((self._dtype, out.dtype))
        if kind is None or out.stride(1) != 1:
            add_replies(self._replies, self.end.geometry, micro_batch, parts, out)
            return
        self._parts.fill(parts)
        end, tokens = self.end, len(out)
        if not end.native.megainfer_m2n_combine(
            end.handle,
            micro_batch,
            self._parts.address,
            kind,
            out.data_ptr(),
            tokens,
            out.stride(0),
        ):
            raise no_such_row(tokens)

    def error_text(self, header: Header) -> str:
        """See `mail.AttentionMail.error_text`."""
        slot = header.source * self.end.geometry.micro_batches + header.micro_batch
        return self._replies.read_text(slot, header.length)


class NativeExpertMail:
    """`mail.ExpertMail`."""

    device: Device = HOST

    def __init__(self, seat: Seat, memory: Memory) -> None:
        geometry, m = seat.geometry, seat.geometry.micro_batches
        self.end = end = NativeEnd(seat, memory, is_attention=False)
        self.rings = memory.rings
        self.counters = end.counters
        messages = dispatch_slots(memory.own, geometry, 0, geometry.num_attention * m)
        outboxes = [_replies_in(region, seat) for region in memory.peers]

        @lru_cache(_KEPT_VIEWS)
        def payload(slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, None]:
            return *dispatch_payload(messages, slot, rows, geometry), None

        @lru_cache(_KEPT_VIEWS)
        def reply(peer: int, micro_batch: int, rows: int) -> Tensor:
            return reply_payload(_met(outboxes[peer]), micro_batch, rows, geometry)

        self.payload, self._reply, self._forget_views = payload, reply, reply.cache_clear
        self._seat, self._outboxes = seat, outboxes
        self.news, self.scan = end.news, end.scan
        self.set_epoch, self.close = end.set_epoch, end.close
        self.sleeper = partial(NativeSleeper, end)

    def admit(self, newcomer: Newcomer) -> None:
        """See `mail.Mail.admit`."""
        self._outboxes[newcomer.index] = _replies_in(newcomer.region, self._seat)
        self._forget_views()
        self.end.admit(newcomer)

    def dismiss(self, peer: int) -> None:
        """See `mail.Mail.dismiss`."""
        self._outboxes[peer] = None
        self._forget_views()
        self.end.dismiss(peer)

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mail.ExpertMail.reply_buffer`."""
        self._begin(dispatch)
        return self._reply(dispatch.source, dispatch.micro_batch, dispatch.num_rows)

    def reply(self, dispatch: Dispatch) -> None:
        """See `mail.ExpertMail.reply`."""
        rows = dispatch.num_rows
        size = self.end.geometry.reply_bytes(rows)
        self.end.post(dispatch.source, Kind.REPLY, _place(dispatch), rows, size)

    def reply_error(self, dispatch: Dispatch, text: bytes) -> None:
        """See `mail.ExpertMail.reply_error`."""
        self._begin(dispatch)
        _met(self._outboxes[dispatch.source]).write_text(dispatch.micro_batch, text)
        self.end.post(dispatch.source, Kind.ERROR, _place(dispatch), 0, len(text))

    def _begin(self, dispatch: Dispatch) -> None:
        end = self.end
        end.native.megainfer_m2n_begin(
            end.handle, dispatch.source, dispatch.micro_batch, dispatch.sequence
        )


def _replies_in(region: mmap | None, seat: Seat) -> Slots | None:
    return None if region is None else slots_at_attention(seat, region)


def _met(slots: Slots | None) -> Slots:
    assert slots is not None, "who has sent something was met"
    return slots


def _place(dispatch: Dispatch) -> tuple[int, int, int]:
    return dispatch.micro_batch, dispatch.layer, dispatch.sequence
