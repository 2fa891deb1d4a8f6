"""Messages whose payloads kernels of a device fill and add up: `plain_mail`'s, but for what touches
a payload."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast

from torch import Tensor

from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.message import Kind
from megainfer.m2n.packing import Packed, Packing
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.inbox import Looking
from megainfer.m2n.slotted.plain_mail import PlainAttentionMail, PlainExpertMail, SlotsIn
from megainfer.m2n.slotted.slots import Slots


class PackedSlots(Protocol):
    """What `Slots` have besides whose payloads are a device's."""

    def packed(self, slot: int, rows: int) -> Packed:
        """Views of a dispatch of R rows."""

    def reply(self, slot: int, rows: int) -> Tensor:
        """View of a reply's sums [R, D]."""


class PackedAttentionMail(PlainAttentionMail):
    """`mail.AttentionMail`. Rows are those of a device, so none is looked at: a part that names one
    that isn't there is its kernels' mistake.

    together: within it is published all that one call sends.
    """

    def __init__(
        self,
        seat: Seat,
        inbox: Looking,
        peers: Sequence[Slots | None],
        slots_in: SlotsIn,
        packing: Packing,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(seat, inbox, peers, slots_in)
        self._replies = _packed(inbox.slots)
        self._packing = packing
        self._together = together

    def dispatch(
        self, micro_batch: int, layer: int, sequence: int, hidden: Tensor, parts: Sequence[Part]
    ) -> None:
        """See `mail.AttentionMail.dispatch`."""
        blank = self._outbox.header(Kind.DISPATCH, micro_batch, layer, sequence)
        headers = {0: blank}  # by rows: whom a message is for its header doesn't say
        sent, filled, payloads = [], [], []
        for node in self._outbox.members:
            slots = _packed(self._outbox.begin(node, micro_batch, sequence))
            rows = parts[node].rows.numel()
            if rows not in headers:
                length = self._geometry.dispatch_bytes(rows)
                headers[rows] = blank._replace(rows=rows, length=length)
            if rows:
                filled.append(parts[node])
                payloads.append(slots.packed(micro_batch, rows))
            sent.append((node, headers[rows]))
        if filled:
            self._packing.pack(self.device, hidden, filled, payloads)
        with self._together():
            for node, header in sent:
                self._outbox.publish(node, header)

    def combine(self, micro_batch: int, parts: Sequence[Part], out: Tensor) -> None:
        """See `mail.AttentionMail.combine`."""
        answered, replies = [], []
        for node, part in enumerate(parts):
            rows = part.rows.numel()
            if rows:
                slot = node * self._geometry.micro_batches + micro_batch
                answered.append(part)
                replies.append(self._replies.reply(slot, rows))
        if answered:
            self._packing.add(self.device, answered, replies, out)


class PackedExpertMail(PlainExpertMail):
    """`mail.ExpertMail`."""

    def __init__(
        self, seat: Seat, inbox: Looking, peers: Sequence[Slots | None], slots_in: SlotsIn
    ) -> None:
        super().__init__(seat, inbox, peers, slots_in)
        self._messages = _packed(inbox.slots)

    def payload(self, slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """See `mail.ExpertMail.payload`."""
        if not rows:
            return super().payload(slot, rows)
        return self._messages.packed(slot, rows)

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mail.ExpertMail.reply_buffer`."""
        return _packed(self._begin(dispatch)).reply(dispatch.micro_batch, dispatch.num_rows)


def _packed(slots: Slots) -> PackedSlots:
    """Those of such a mail are all of this kind, as its road makes them."""
    return cast(PackedSlots, slots)
