"""M2N between GPUs of one host."""

from dataclasses import replace
from functools import partial
from mmap import mmap

from megainfer.device import Device
from megainfer.m2n.host.connection import OwnEnd
from megainfer.m2n.host.ports import (
    HostAttentionPort,
    HostExpertPort,
    accept_at_its_place,
    addresses_of,
    listen_at_its_place,
)
from megainfer.m2n.ipc.equipment import Equipment, equipment_of
from megainfer.m2n.ipc.mail import DeviceAttentionMail, DeviceExpertMail
from megainfer.m2n.ipc.publisher import Publisher
from megainfer.m2n.ipc.slots import (
    DeviceSlots,
    own_messages,
    own_replies,
    slots_at_attention,
    slots_at_expert,
)
from megainfer.m2n.packing import Packing
from megainfer.m2n.roads import PortOptions, Road, Seat
from megainfer.m2n.slotted.inbox import Inbox, Looking
from megainfer.m2n.slotted.mail import TO_ATTENTION, TO_EXPERT
from megainfer.m2n.slotted.native_inbox import NativeInbox
from megainfer.m2n.slotted.opening import MOVERS, choose_mover


def attention_port(
    token: str, seat: Seat, options: PortOptions, equipment: Equipment
) -> HostAttentionPort:
    """An attention node's port that has met nobody yet."""
    seat = _on_devices(seat)
    geometry, memory = seat.geometry, equipment.memory
    own = OwnEnd.create(geometry.attention_region_bytes, memory, geometry.attention_payloads)
    assert own.payloads is not None
    publisher = Publisher(memory.device, equipment.words)
    replies = own_replies(seat, own.slots, own.payloads, memory.device)
    mail = DeviceAttentionMail(
        seat,
        _inbox(replies, seat, own.slots, options, is_attention=True),
        [None] * geometry.num_expert,
        partial(slots_at_expert, seat, publisher),
        publisher,
        equipment.packing,
    )
    sleeper = mail.sleeper(own.bell, options.spin_seconds, options.nap_seconds)
    return HostAttentionPort(token, seat, own, mail, sleeper)


def expert_port(seat: Seat, options: PortOptions, equipment: Equipment) -> HostExpertPort:
    """An expert node's port that nobody can meet yet."""
    seat = _on_devices(seat)
    geometry, memory = seat.geometry, equipment.memory
    own = OwnEnd.create(geometry.expert_region_bytes, memory, geometry.expert_payloads)
    assert own.payloads is not None
    publisher = Publisher(memory.device, equipment.words)
    messages = own_messages(seat, own.slots, own.payloads, memory.device)
    mail = DeviceExpertMail(
        seat,
        _inbox(messages, seat, own.slots, options, is_attention=False),
        [None] * geometry.num_attention,
        partial(slots_at_attention, seat, publisher),
    )
    sleeper = mail.sleeper(own.bell, options.spin_seconds, options.nap_seconds)
    return HostExpertPort(seat, own, mail, sleeper)


def join_attention(
    road: Road, seat: Seat, device: Device | None = None, packing: Packing | None = None
) -> HostAttentionPort:
    """See `roads.join_attention`."""
    return attention_port(road.token, seat, road.options, equipment_of(device, packing))


def join_expert(road: Road, seat: Seat, device: Device | None = None) -> HostExpertPort:
    """See `roads.join_expert`."""
    port = expert_port(seat, road.options, equipment_of(device, None))
    listen_at_its_place(port, road, seat)
    return port


def open_attention_port(
    road: Road,
    seat: Seat,
    timeout: float,
    device: Device | None = None,
    packing: Packing | None = None,
) -> HostAttentionPort:
    """See `roads.open_attention_port`."""
    port = attention_port(road.token, seat, road.options, equipment_of(device, packing))
    port.connect(addresses_of(road, seat), timeout)
    return port


def open_expert_port(
    road: Road, seat: Seat, timeout: float, device: Device | None = None
) -> HostExpertPort:
    """See `roads.open_expert_port`."""
    port = expert_port(seat, road.options, equipment_of(device, None))
    accept_at_its_place(port, road, seat, timeout)
    return port


def _on_devices(seat: Seat) -> Seat:
    """The seat with payloads where this road has them."""
    return replace(seat, geometry=seat.geometry.on_devices)


def _inbox(
    own: DeviceSlots, seat: Seat, region: mmap, options: PortOptions, is_attention: bool
) -> Looking:
    """What looks at a node's own slots: of a mover that is the part which touches no payload."""
    if choose_mover(options.mover) is MOVERS["native"]:
        return NativeInbox(own, seat, region, is_attention)
    return Inbox(own, seat.geometry, TO_ATTENTION if is_attention else TO_EXPERT, seat.epoch)
