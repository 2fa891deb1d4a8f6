"""The road as a value: what opens its ports, and what is said of one that isn't there."""

import threading

import msgspec
import pytest

from megainfer.errors import ConfigError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.local import LocalHub
from megainfer.m2n.roads import (
    ROADS,
    PortOptions,
    Road,
    Seat,
    open_attention_port,
    open_expert_port,
)
from tests.support import loopback_road
from tests.support.m2n_cluster import SECONDS, fresh_token

GEOMETRY = Geometry(1, 1, 1, 4, 8, 2, "float32")
SEAT = Seat(GEOMETRY, 0, 3)


def test_a_road_is_one_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROADS, "loopback", loopback_road.__name__)
    road = Road("loopback", fresh_token())
    attention = open_attention_port(road, SEAT, SECONDS)
    expert = open_expert_port(road, SEAT, SECONDS)
    attention.rest(0)
    assert len(expert.receive()) == 1


def test_shm_is_a_road() -> None:
    road, opened = Road("shm", fresh_token()), []

    def meet() -> None:
        opened.append(open_expert_port(road, SEAT, SECONDS))

    meeting = threading.Thread(target=meet)
    meeting.start()
    attention = open_attention_port(road, SEAT, SECONDS)
    meeting.join(SECONDS)
    attention.rest(0)
    opened[0].wait(SECONDS)
    assert len(opened[0].receive()) == 1
    attention.close()
    opened[0].close()


def test_a_road_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ConfigError, match="no M2N road is called 'rail'; there are: shm, ipc, dist, mixed"
    ):
        open_attention_port(Road("rail", "token"), SEAT, SECONDS)


def test_a_mover_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no mover 'carrier pigeon'; it has: plain, native"):
        LocalHub(GEOMETRY, mover="carrier pigeon")


def test_a_road_can_be_sent() -> None:
    road = Road("shm", "token", PortOptions(1e-3, "plain"))
    assert msgspec.json.decode(msgspec.json.encode(road), type=Road) == road
