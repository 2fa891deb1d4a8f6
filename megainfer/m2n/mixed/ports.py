"""M2N on two roads at once: `dist` to nodes of other hosts, to those of this one `shm`, or `ipc`
where all are on GPUs.

Both ends open a port on each. Attention nodes are told where expert nodes of other hosts are; whom
they are to meet without an address is here.
"""

import contextlib
from dataclasses import replace

from megainfer.device import Device
from megainfer.m2n import roads
from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.host.ports import HostAttentionPort, HostExpertPort
from megainfer.m2n.mailbox import AttentionPort, ExpertPort
from megainfer.m2n.mixed.attention_port import MixedAttentionPort
from megainfer.m2n.mixed.expert_port import MixedExpertPort
from megainfer.m2n.packing import Packing
from megainfer.m2n.roads import Road, Seat

NAP_SECONDS = 20e-6
"""Until it looks again whether a GPU has published what was announced, as links look for theirs."""


def join_attention(
    road: Road, seat: Seat, device: Device | None = None, packing: Packing | None = None
) -> MixedAttentionPort:
    """See `roads.join_attention`."""
    near = roads.join_attention(_of_host(road), seat, device, packing)
    return _attention(near, road, seat, device, packing)


def join_expert(road: Road, seat: Seat, device: Device | None = None) -> MixedExpertPort:
    """See `roads.join_expert`."""
    return _expert(roads.join_expert(_of_host(road), seat, device), road, seat, device)


def open_attention_port(
    road: Road,
    seat: Seat,
    timeout: float,
    device: Device | None = None,
    packing: Packing | None = None,
) -> MixedAttentionPort:
    """See `roads.open_attention_port`: all are of this host."""
    near = roads.open_attention_port(_of_host(road), seat, timeout, device, packing)
    return _attention(near, road, seat, device, packing)


def open_expert_port(
    road: Road, seat: Seat, timeout: float, device: Device | None = None
) -> MixedExpertPort:
    """See `roads.open_expert_port`: all are of this host."""
    near = roads.open_expert_port(_of_host(road), seat, timeout, device)
    return _expert(near, road, seat, device)


def _of_host(road: Road) -> Road:
    """Threads of links need the interpreter that a node which spins would hold."""
    options = replace(road.options, spin_seconds=0.0, nap_seconds=NAP_SECONDS)
    return replace(road, kind=road.near, options=options)


def _attention(
    near: AttentionPort, road: Road, seat: Seat, device: Device | None, packing: Packing | None
) -> MixedAttentionPort:
    assert isinstance(near, HostAttentionPort), "both roads of a host have such ports"
    with contextlib.ExitStack() as undo:
        undo.callback(near.close)
        port = MixedAttentionPort(near, DistAttentionPort(road, seat, device, packing))
        undo.pop_all()
    return port


def _expert(near: ExpertPort, road: Road, seat: Seat, device: Device | None) -> MixedExpertPort:
    assert isinstance(near, HostExpertPort), "both roads of a host have such ports"
    with contextlib.ExitStack() as undo:
        undo.callback(near.close)
        port = MixedExpertPort(near, DistExpertPort(road, seat, device, sign=False))
        undo.pop_all()
    return port
