"""M2N on two roads at once: `shm` to nodes of this host, `dist` to those of others.

Both ends open a port on each. Attention nodes are told where expert nodes of other hosts are; whom
they are to meet without an address is here.
"""

import contextlib
from dataclasses import replace

from megainfer.device import Device
from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.host.ports import HostAttentionPort, HostExpertPort
from megainfer.m2n.mixed.attention_port import MixedAttentionPort
from megainfer.m2n.mixed.expert_port import MixedExpertPort
from megainfer.m2n.packing import Packing
from megainfer.m2n.roads import Road, Seat
from megainfer.m2n.shm import ports as shm


def join_attention(
    road: Road, seat: Seat, device: Device | None = None, packing: Packing | None = None
) -> MixedAttentionPort:
    """See `roads.join_attention`."""
    return _attention(shm.join_attention(_of_host(road), seat), road, seat, device, packing)


def join_expert(road: Road, seat: Seat, device: Device | None = None) -> MixedExpertPort:
    """See `roads.join_expert`."""
    return _expert(shm.join_expert(_of_host(road), seat), road, seat, device)


def open_attention_port(
    road: Road,
    seat: Seat,
    timeout: float,
    device: Device | None = None,
    packing: Packing | None = None,
) -> MixedAttentionPort:
    """See `roads.open_attention_port`: all are of this host."""
    near = shm.open_attention_port(_of_host(road), seat, timeout)
    return _attention(near, road, seat, device, packing)


def open_expert_port(
    road: Road, seat: Seat, timeout: float, device: Device | None = None
) -> MixedExpertPort:
    """See `roads.open_expert_port`: all are of this host."""
    return _expert(shm.open_expert_port(_of_host(road), seat, timeout), road, seat, device)


def _of_host(road: Road) -> Road:
    """Threads of links need the interpreter that a node which spins would hold."""
    return replace(road, options=replace(road.options, spin_seconds=0.0))


def _attention(
    near: HostAttentionPort, road: Road, seat: Seat, device: Device | None, packing: Packing | None
) -> MixedAttentionPort:
    with contextlib.ExitStack() as undo:
        undo.callback(near.close)
        port = MixedAttentionPort(near, DistAttentionPort(road, seat, device, packing))
        undo.pop_all()
    return port


def _expert(near: HostExpertPort, road: Road, seat: Seat, device: Device | None) -> MixedExpertPort:
    with contextlib.ExitStack() as undo:
        undo.callback(near.close)
        port = MixedExpertPort(near, DistExpertPort(road, seat, device, sign=False))
        undo.pop_all()
    return port
