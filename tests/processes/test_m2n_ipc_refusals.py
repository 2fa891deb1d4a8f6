"""The road between GPUs, over its twin: nodes that don't belong on it."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

from megainfer.errors import ConfigError, ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.host.connection import OwnEnd
from megainfer.m2n.host.handshake import HELLO_BYTES, Channel, Frame, Hello, Side
from megainfer.m2n.host.meeting import Listener, expert_address
from megainfer.m2n.mailbox import AttentionPort, ExpertPort
from megainfer.m2n.roads import (
    ROADS,
    PortOptions,
    Road,
    Seat,
    join_attention,
    join_expert,
    open_attention_port,
    open_expert_port,
    road_on_a_host,
)
from tests.support import twin_road
from tests.support.m2n_cluster import SECONDS, fresh_token
from tests.support.twin_road import TWIN, UUID, TwinMemory

GEOMETRY = Geometry(1, 1, 1, capacity=4, hidden_size=8, top_k=2, dtype="float32")


@pytest.fixture
def road(monkeypatch: pytest.MonkeyPatch) -> Road:
    monkeypatch.setitem(ROADS, TWIN, twin_road.__name__)
    return Road(TWIN, fresh_token())


def refusals(
    attention: Callable[[], AttentionPort], expert: Callable[[], ExpertPort]
) -> tuple[str, str]:
    """What both say who don't belong together."""
    said: list[str] = []

    def accept() -> None:
        with pytest.raises(ProtocolError) as caught:
            expert()
        said.append(str(caught.value))

    accepting = threading.Thread(target=accept)
    accepting.start()
    with pytest.raises(ProtocolError) as caught:
        attention()
    accepting.join(SECONDS)
    return str(caught.value), said[0]


def test_nodes_of_two_roads_refuse_each_other(road: Road) -> None:
    seat, other = Seat(GEOMETRY, 0), Road("shm", road.token)
    ours, theirs = refusals(
        lambda: open_attention_port(road, seat, SECONDS),
        lambda: open_expert_port(other, seat, SECONDS),
    )
    reason = "payloads differs: attention node 0 has device, expert node 0 has host"
    assert ours == f"expert node 0 refused: {reason}"
    assert theirs.endswith(reason)


@pytest.mark.parametrize(
    ("handed_over", "reason"),
    [
        (2, "2 file descriptors, expected 3: slots and bell and payloads"),
        (3, "slots have 512 bytes"),
    ],
)
def test_wrong_payloads_are_refused(road: Road, handed_over: int, reason: str) -> None:
    geometry = GEOMETRY.on_devices
    address = expert_address(road.token, 0)
    listener = Listener.create(address)
    said: list[str] = []

    def accept() -> None:
        port = twin_road.expert_port(Seat(GEOMETRY, 0), PortOptions(), twin_road.twin())
        with pytest.raises(ProtocolError) as caught:
            port.accept(listener, SECONDS)
        said.append(str(caught.value))

    accepting = threading.Thread(target=accept)
    accepting.start()
    memory, room = TwinMemory(), geometry.attention_payloads
    too_large = room._replace(stride=512 // room.slots)
    home = OwnEnd.create(geometry.attention_region_bytes, memory, too_large)
    assert home.payloads is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SECONDS)
        connection.connect(address)
        channel = Channel(connection, time.monotonic() + SECONDS, "expert node 0")
        hello = Hello.of(Side.ATTENTION, Seat(geometry, 0), UUID)
        channel.send(Frame.HELLO, hello.pack())
        assert Hello.unpack(channel.receive(Frame.HELLO, HELLO_BYTES)[0]).device == UUID
        _, files = channel.receive(Frame.MEMORY, 0)
        assert len(files) == 3
        own = [home.file.fileno(), home.bell.fileno(), home.payloads.fileno()]
        channel.send(Frame.MEMORY, b"", own[:handed_over])
        with pytest.raises(ProtocolError, match=reason):
            channel.receive(Frame.WELCOME, 0)
    accepting.join(SECONDS)
    assert reason in said[0]
    listener.close()
    home.close()
    for file in files:
        file.close()


def test_a_node_on_the_host_is_told_which_road_to_take() -> None:
    road = Road("ipc", fresh_token())
    for opening in (join_attention, join_expert):
        with pytest.raises(ConfigError, match=r"'ipc' joins nodes on NVIDIA GPUs.*take 'shm'"):
            opening(road, Seat(GEOMETRY, 0))


@pytest.mark.parametrize(
    ("wish", "attention", "experts", "road"),
    [
        ("auto", True, True, ("ipc", "gloo")),
        ("auto", True, False, ("shm", "gloo")),
        ("auto", False, True, ("shm", "gloo")),
        ("auto", False, False, ("shm", "gloo")),
        ("shm", True, True, ("shm", "gloo")),
        ("dist", True, True, ("dist", "nccl")),
        ("dist", True, False, ("dist", "gloo")),
        ("dist", False, False, ("dist", "gloo")),
    ],
)
def test_which_road_joins_the_roles_of_a_host(
    wish: str, attention: bool, experts: bool, road: tuple[str, str]
) -> None:
    assert road_on_a_host(wish, attention, experts) == road
    assert road[0] in ROADS
