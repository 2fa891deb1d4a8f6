"""Looking for messages in C++, for a mail that moves them itself."""

from mmap import mmap

from megainfer.m2n.message import Header
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import Memory
from megainfer.m2n.slotted.native_end import NativeEnd
from megainfer.m2n.slotted.slots import Slots


class NativeInbox:
    """`inbox.Looking` over a node's own `slots`, all those of `region`."""

    def __init__(self, slots: Slots, seat: Seat, region: mmap, is_attention: bool) -> None:
        geometry = seat.geometry
        count = geometry.num_expert if is_attention else geometry.num_attention
        self.slots = slots
        self._end = end = NativeEnd(seat, Memory(region, [None] * count), is_attention)
        self.counters = end.counters
        self.news, self.awaits = end.news, end.awaits
        self.watch, self.leave = end.admit, end.dismiss

    def scan(self, since: int | None = None) -> list[tuple[int, Header]]:
        """See `inbox.Inbox.scan`."""
        return self._end.scan(since)

    def set_epoch(self, epoch: int) -> None:
        """See `inbox.Inbox.set_epoch`; whom to send to is the mail's to know."""
        self._end.set_epoch(epoch, ())
