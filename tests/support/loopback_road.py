"""A road of one process, as a line in `roads.ROADS` would name it."""

from functools import cache

from megainfer.m2n.geometry import Geometry
from megainfer.m2n.local import LocalHub
from megainfer.m2n.mailbox import AttentionPort, ExpertPort
from megainfer.m2n.roads import Road, Seat


def open_attention_port(road: Road, seat: Seat, timeout: float, *_: object) -> AttentionPort:
    return hub_of(road.token, seat.geometry, seat.epoch).attention_port(seat.index)


def open_expert_port(road: Road, seat: Seat, timeout: float, *_: object) -> ExpertPort:
    return hub_of(road.token, seat.geometry, seat.epoch).expert_port(seat.index)


@cache
def hub_of(token: str, geometry: Geometry, epoch: int) -> LocalHub:
    """Where the nodes of an instance meet."""
    return LocalHub(geometry, epoch)
