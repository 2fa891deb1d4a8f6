"""M2N between processes of one host: all of a slot in shared memory.

Its ports are the host's, whatever their nodes compute on.
"""

from megainfer.device import Device
from megainfer.m2n.host.connection import OwnEnd
from megainfer.m2n.host.ports import (
    HostAttentionPort,
    HostExpertPort,
    accept_at_its_place,
    addresses_of,
    listen_at_its_place,
)
from megainfer.m2n.packing import Packing
from megainfer.m2n.roads import DEFAULT_OPTIONS, PortOptions, Road, Seat
from megainfer.m2n.slotted.mail import Memory
from megainfer.m2n.slotted.opening import choose_mover


def attention_port(
    token: str, seat: Seat, options: PortOptions = DEFAULT_OPTIONS
) -> HostAttentionPort:
    """An attention node's port that has met nobody yet."""
    own = OwnEnd.create(seat.geometry.attention_region_bytes)
    memory = Memory(own.slots, [None] * seat.geometry.num_expert, rings=True)
    mail = choose_mover(options.mover).attention(seat, memory)
    return HostAttentionPort(token, seat, own, mail, mail.sleeper(own.bell, options.spin_seconds))


def expert_port(seat: Seat, options: PortOptions = DEFAULT_OPTIONS) -> HostExpertPort:
    """An expert node's port that nobody can meet yet."""
    own = OwnEnd.create(seat.geometry.expert_region_bytes)
    memory = Memory(own.slots, [None] * seat.geometry.num_attention, rings=True)
    mail = choose_mover(options.mover).expert(seat, memory)
    return HostExpertPort(seat, own, mail, mail.sleeper(own.bell, options.spin_seconds))


def join_attention(
    road: Road, seat: Seat, device: Device | None = None, packing: Packing | None = None
) -> HostAttentionPort:
    """See `roads.join_attention`."""
    return attention_port(road.token, seat, road.options)


def join_expert(road: Road, seat: Seat, device: Device | None = None) -> HostExpertPort:
    """See `roads.join_expert`."""
    port = expert_port(seat, road.options)
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
    port = attention_port(road.token, seat, road.options)
    port.connect(addresses_of(road, seat), timeout)
    return port


def open_expert_port(
    road: Road, seat: Seat, timeout: float, device: Device | None = None
) -> HostExpertPort:
    """See `roads.open_expert_port`."""
    port = expert_port(seat, road.options)
    accept_at_its_place(port, road, seat, timeout)
    return port
