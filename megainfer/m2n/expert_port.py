"""The expert node's end of M2N over shared slots."""

from collections.abc import Sequence
from mmap import mmap

import torch
from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.m2n.inbox import Inbox
from megainfer.m2n.mailbox import Dispatch, Rest
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.port import Seat, SlotPort, Wire
from megainfer.m2n.slots import (
    dispatch_payload,
    dispatch_slots,
    reply_payload,
    reply_slots,
    torch_dtype,
)


class SlotExpertPort(SlotPort):
    """`mailbox.ExpertPort`: dispatch slots are in our memory, replies in the attention nodes'."""

    def __init__(self, seat: Seat, own: mmap, attention: Sequence[mmap], wire: Wire) -> None:
        """own: our region of dispatch slots. attention: the regions of all attention nodes."""
        geometry, m = seat.geometry, seat.geometry.micro_batches
        messages = dispatch_slots(own, geometry, 0, geometry.num_attention * m)
        inbox = Inbox(messages, geometry, frozenset({Kind.DISPATCH, Kind.REST}), seat.epoch)
        outboxes = [reply_slots(region, geometry, seat.index * m, m) for region in attention]
        super().__init__(seat, inbox, outboxes, wire)
        self._messages = messages
        self._owed: dict[int, int] = {}  # slot -> sequence of the dispatch that waits for a reply

    def receive(self) -> list[Dispatch | Rest]:
        """See `mailbox.ExpertPort.receive`."""
        return [self._open(slot, header) for slot, header in self._inbox.scan()]

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mailbox.ExpertPort.reply_buffer`."""
        if not self._is_owed(dispatch):
            shape = (dispatch.num_rows, self._geometry.hidden_size)
            return torch.empty(shape, dtype=torch_dtype(self._geometry))
        outbox = self._outboxes[dispatch.source]
        outbox.begin(dispatch.micro_batch, dispatch.sequence)
        return reply_payload(outbox, dispatch.micro_batch, dispatch.num_rows, self._geometry)

    def reply(self, dispatch: Dispatch) -> None:
        """See `mailbox.ExpertPort.reply`."""
        if self._settle(dispatch):
            rows = dispatch.num_rows
            header = self._answer(Kind.REPLY, dispatch)
            length = self._geometry.reply_bytes(rows)
            self._outboxes[dispatch.source].begin(dispatch.micro_batch, dispatch.sequence)
            self._post(dispatch.source, header._replace(rows=rows, length=length))

    def reply_error(self, dispatch: Dispatch, message: str) -> None:
        """See `mailbox.ExpertPort.reply_error`."""
        if self._settle(dispatch):
            text = _cut(message, self._geometry.error_room)
            outbox = self._outboxes[dispatch.source]
            outbox.begin(dispatch.micro_batch, dispatch.sequence)
            outbox.write_text(dispatch.micro_batch, text)
            header = self._answer(Kind.ERROR, dispatch)
            self._post(dispatch.source, header._replace(length=len(text)))

    def _abandon(self) -> None:
        self._owed.clear()

    def _open(self, slot: int, header: Header) -> Dispatch | Rest:
        if slot in self._owed:
            raise ProtocolError(
                f"attention node {header.source} rewrote the slot of micro-batch "
                f"{header.micro_batch} before the reply to its message {self._owed[slot]}"
            )
        if header.kind == Kind.REST:
            return Rest(header.source, header.micro_batch)
        if header.rows:
            self._owed[slot] = header.sequence
        hidden, ids, weights = dispatch_payload(self._messages, slot, header.rows, self._geometry)
        return Dispatch(
            source=header.source,
            micro_batch=header.micro_batch,
            layer=header.layer,
            sequence=header.sequence,
            hidden=hidden,
            local_ids=ids,
            weights=weights,
        )

    def _answer(self, kind: Kind, dispatch: Dispatch) -> Header:
        return self._header(kind, dispatch.sequence, dispatch.layer, dispatch.micro_batch)

    def _is_owed(self, dispatch: Dispatch) -> bool:
        slot = self._slot(dispatch.source, dispatch.micro_batch)
        return self._owed.get(slot) == dispatch.sequence

    def _settle(self, dispatch: Dispatch) -> bool:
        """Whether the attention node still waits for this reply, which is now to be sent."""
        if not dispatch.num_rows:
            raise ProtocolError("a dispatch without rows gets no reply")
        if not self._is_owed(dispatch):
            self._inbox.counters.dropped += 1
            return False
        del self._owed[self._slot(dispatch.source, dispatch.micro_batch)]
        return True


def _cut(text: str, room: int) -> bytes:
    """`text` in at most `room` bytes of UTF-8, no character split."""
    return text.encode()[:room].decode("utf-8", errors="ignore").encode()
