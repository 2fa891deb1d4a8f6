"""The expert node's end of M2N over shared slots."""

from collections.abc import Collection

from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.m2n.mailbox import Dispatch, Rest
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import ExpertMail
from megainfer.m2n.slotted.port import SlotPort, Wire
from megainfer.m2n.slotted.slots import torch_dtype


class SlotExpertPort(SlotPort[ExpertMail]):
    """`mailbox.ExpertPort`: dispatch slots are in our memory, replies in the attention nodes'."""

    address: tuple[str, int] | None = None

    def __init__(
        self, seat: Seat, mail: ExpertMail, wire: Wire, met: Collection[int] | None = None
    ) -> None:
        everybody = range(seat.geometry.num_attention)
        super().__init__(seat, mail, wire, everybody if met is None else met)
        self._owed: dict[int, int] = {}  # slot -> sequence of the dispatch that waits for a reply

    def receive(self) -> list[Dispatch | Rest]:
        """See `mailbox.ExpertPort.receive`."""
        return [self._open(slot, header) for slot, header in self._scan()]

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mailbox.ExpertPort.reply_buffer`."""
        if not self._is_owed(dispatch):
            shape = (dispatch.num_rows, self._geometry.hidden_size)
            return self.device.empty(shape, torch_dtype(self._geometry))
        return self._mail.reply_buffer(dispatch)

    def reply(self, dispatch: Dispatch) -> None:
        """See `mailbox.ExpertPort.reply`."""
        if self._settle(dispatch):
            self._mail.reply(dispatch)
            self._ring((dispatch.source,))

    def reply_error(self, dispatch: Dispatch, message: str) -> None:
        """See `mailbox.ExpertPort.reply_error`."""
        if self._settle(dispatch):
            self._mail.reply_error(dispatch, _cut(message, self._geometry.error_room))
            self._ring((dispatch.source,))

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
        hidden, ids, weights, count = self._mail.payload(slot, header.rows)
        return Dispatch(
            source=header.source,
            micro_batch=header.micro_batch,
            layer=header.layer,
            sequence=header.sequence,
            hidden=hidden,
            local_ids=ids,
            weights=weights,
            count=count,
        )

    def _is_owed(self, dispatch: Dispatch) -> bool:
        slot = self._slot(dispatch.source, dispatch.micro_batch)
        return self._owed.get(slot) == dispatch.sequence

    def _settle(self, dispatch: Dispatch) -> bool:
        """Whether the attention node still waits for this reply, which is now to be sent."""
        if not dispatch.num_rows:
            raise ProtocolError("a dispatch without rows gets no reply")
        if not self._is_owed(dispatch):
            self._mail.counters.dropped += 1
            return False
        del self._owed[self._slot(dispatch.source, dispatch.micro_batch)]
        return True


def _cut(text: str, room: int) -> bytes:
    """`text` in at most `room` bytes of UTF-8, no character split."""
    return text.encode()[:room].decode("utf-8", errors="ignore").encode()
