"""Messages whose payloads a device moves: `plain_mail`'s, but for what touches a payload."""

from collections.abc import Sequence

from torch import Tensor

from megainfer.m2n.ipc.publisher import Publisher
from megainfer.m2n.ipc.sleeper import DeviceSleeper
from megainfer.m2n.ipc.slots import DeviceSlots
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.message import Kind
from megainfer.m2n.packing import Packing
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.inbox import Looking
from megainfer.m2n.slotted.plain_mail import PlainAttentionMail, PlainExpertMail, SlotsIn
from megainfer.m2n.slotted.sleeper import OwnBell
from megainfer.m2n.slotted.slots import Slots


class DeviceAttentionMail(PlainAttentionMail):
    """`mail.AttentionMail`. Rows are those of a device, so none is looked at: a part that names one
    that isn't there is its kernels' mistake."""

    def __init__(
        self,
        seat: Seat,
        inbox: Looking,
        peers: Sequence[Slots | None],
        slots_in: SlotsIn,
        publisher: Publisher,
        packing: Packing,
    ) -> None:
        super().__init__(seat, inbox, peers, slots_in)
        self._replies = _on_device(inbox.slots)
        self._publisher = publisher
        self._packing = packing

    def dispatch(
        self, micro_batch: int, layer: int, sequence: int, hidden: Tensor, parts: Sequence[Part]
    ) -> None:
        """See `mail.AttentionMail.dispatch`."""
        blank = self._outbox.header(Kind.DISPATCH, micro_batch, layer, sequence)
        headers = {0: blank}  # by rows: whom a message is for its header doesn't say
        sent, filled, payloads = [], [], []
        for node in self._outbox.members:
            slots = _on_device(self._outbox.begin(node, micro_batch, sequence))
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
        with self._publisher.together():
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

    def sleeper(self, bell: OwnBell, spin_seconds: float) -> DeviceSleeper:
        """See `mail.Mail.sleeper`."""
        return DeviceSleeper(self.news, self._inbox.awaits, bell, spin_seconds)


class DeviceExpertMail(PlainExpertMail):
    """`mail.ExpertMail`."""

    def __init__(
        self, seat: Seat, inbox: Looking, peers: Sequence[Slots | None], slots_in: SlotsIn
    ) -> None:
        super().__init__(seat, inbox, peers, slots_in)
        self._messages = _on_device(inbox.slots)

    def payload(self, slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """See `mail.ExpertMail.payload`."""
        if not rows:
            return super().payload(slot, rows)
        return self._messages.packed(slot, rows)

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mail.ExpertMail.reply_buffer`."""
        slots = _on_device(self._begin(dispatch))
        return slots.reply(dispatch.micro_batch, dispatch.num_rows)

    def sleeper(self, bell: OwnBell, spin_seconds: float) -> DeviceSleeper:
        """See `mail.Mail.sleeper`."""
        return DeviceSleeper(self.news, self._inbox.awaits, bell, spin_seconds)


def _on_device(slots: Slots) -> DeviceSlots:
    assert isinstance(slots, DeviceSlots)
    return slots
