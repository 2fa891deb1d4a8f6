"""Messages whose payloads a device moves: its streams show them, and nobody rings for that."""

from collections.abc import Sequence

from megainfer.m2n.ipc.publisher import Publisher
from megainfer.m2n.ipc.sleeper import DeviceSleeper
from megainfer.m2n.packing import Packing
from megainfer.m2n.roads import DEFAULT_OPTIONS, Seat
from megainfer.m2n.slotted.inbox import Looking
from megainfer.m2n.slotted.packed_mail import PackedAttentionMail, PackedExpertMail
from megainfer.m2n.slotted.plain_mail import SlotsIn
from megainfer.m2n.slotted.sleeper import OwnBell
from megainfer.m2n.slotted.slots import Slots


class DeviceAttentionMail(PackedAttentionMail):
    """`mail.AttentionMail`."""

    def __init__(
        self,
        seat: Seat,
        inbox: Looking,
        peers: Sequence[Slots | None],
        slots_in: SlotsIn,
        publisher: Publisher,
        packing: Packing,
    ) -> None:
        super().__init__(seat, inbox, peers, slots_in, packing, publisher.together)

    def sleeper(
        self, bell: OwnBell, spin_seconds: float, nap_seconds: float = DEFAULT_OPTIONS.nap_seconds
    ) -> DeviceSleeper:
        """See `mail.Mail.sleeper`; nap_seconds: as `roads.PortOptions` has them."""
        return DeviceSleeper(self.news, self._inbox.awaits, bell, spin_seconds, nap_seconds)


class DeviceExpertMail(PackedExpertMail):
    """`mail.ExpertMail`."""

    def sleeper(
        self, bell: OwnBell, spin_seconds: float, nap_seconds: float = DEFAULT_OPTIONS.nap_seconds
    ) -> DeviceSleeper:
        """See `mail.Mail.sleeper`; nap_seconds: as `roads.PortOptions` has them."""
        return DeviceSleeper(self.news, self._inbox.awaits, bell, spin_seconds, nap_seconds)
