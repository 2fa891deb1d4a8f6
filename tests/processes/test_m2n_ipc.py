"""The road between GPUs, over its twin: processes that are killed while their devices store, and
nodes that don't belong on it."""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Event

import pytest
import torch

from megainfer.errors import ConfigError, ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.host.connection import OwnEnd
from megainfer.m2n.host.handshake import HELLO_BYTES, Channel, Frame, Hello, Side
from megainfer.m2n.host.meeting import Listener, expert_address
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, JoiningPort, Part
from megainfer.m2n.packing import Packed, TorchPacking
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
from tests.support.m2n_cluster import SECONDS, fork, fresh_token
from tests.support.twin_road import TWIN, UUID, TwinMemory, TwinWords

GEOMETRY = Geometry(1, 1, 1, capacity=4, hidden_size=8, top_k=2, dtype="float32")
ROWS = 3


@pytest.fixture
def road(monkeypatch: pytest.MonkeyPatch) -> Road:
    monkeypatch.setitem(ROADS, TWIN, twin_road.__name__)
    return Road(TWIN, fresh_token())


def part() -> Part:
    ids = torch.zeros(ROWS, GEOMETRY.top_k, dtype=torch.int32)
    return Part(torch.arange(ROWS), ids, torch.ones(ROWS, GEOMETRY.top_k))


def meet(port: JoiningPort, incarnation: int = 0) -> None:
    met = Event()
    port.meet(0, incarnation, SECONDS, met.set)
    assert met.wait(SECONDS)


def attention_in(road: Road, epoch: int, incarnation: int = 0, expert: int = 0) -> JoiningPort:
    """An attention node that has met the expert node's incarnation, in this epoch."""
    port = join_attention(road, Seat(GEOMETRY, 0, 0, incarnation))
    meet(port, expert)
    port.set_epoch(epoch, [0])
    return port


def until(port: AttentionPort | ExpertPort, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        port.wait(SECONDS)


def received(port: ExpertPort) -> Dispatch:
    messages: list[object] = []

    def look() -> bool:
        messages.extend(port.receive())
        return bool(messages)

    until(port, look)
    (message,) = messages
    assert isinstance(message, Dispatch)
    return message


def answer(port: ExpertPort) -> Dispatch:
    """Double the next message's rows; the message as it was, since the next may be in its slot."""
    message = received(port)
    rows = message.hidden.clone()
    port.reply_buffer(message).copy_(2 * rows)
    port.reply(message)
    return message._replace(hidden=rows)


def round_trip(attention: AttentionPort, expert: ExpertPort, mark: float) -> None:
    hidden = torch.full((ROWS, GEOMETRY.hidden_size), mark)
    handle = attention.dispatch(0, 3, hidden, [part()])
    assert torch.equal(answer(expert).hidden, hidden)
    until(attention, lambda: bool(attention.poll()))
    out = torch.zeros_like(hidden)
    attention.combine(handle, out)
    assert torch.equal(out, 2 * hidden)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def check_sleeps(port: AttentionPort | ExpertPort) -> None:
    """It awaits nothing: of two things that could wake it, it is the second."""
    with pipe() as (reader, writer):
        port.wait(0.0)  # its bell is silent now
        threading.Timer(0.03, os.write, (writer, b"x")).start()
        port.wait(1000.0, [reader])
        assert select.select([reader], [], [], 0)[0] == [reader]


# --- killed while storing -------------------------------------------------------------------------


def stop_before_the_word(told: Connection) -> None:
    """This process's device gets as far as the payload, then stands still."""

    def store(words: TwinWords, stores: object) -> None:
        told.send("storing")
        signal.pause()

    TwinWords.store = store  # type: ignore[method-assign]


def stop_within_the_rows(told: Connection) -> None:
    def pack(packing: TorchPacking, *arguments: object) -> None:
        (packed,) = arguments[3]  # type: ignore[misc]
        assert isinstance(packed, Packed)
        packed.hidden[: ROWS // 2].fill_(torch.nan)
        told.send("storing")
        signal.pause()

    TorchPacking.pack = pack  # type: ignore[method-assign]


def dispatch_halfway(road: Road, stop: Callable[[Connection], None], told: Connection) -> None:
    port = attention_in(road, 1)
    stop(told)
    port.dispatch(0, 3, torch.ones(ROWS, GEOMETRY.hidden_size), [part()])


@pytest.mark.parametrize("stop", [stop_within_the_rows, stop_before_the_word])
def test_an_attention_node_that_is_killed_while_its_device_stores(
    road: Road, stop: Callable[[Connection], None]
) -> None:
    expert = join_expert(road, Seat(GEOMETRY, 0))
    ours, theirs = Pipe(duplex=False)
    process = fork(dispatch_halfway, road, stop, theirs)
    assert ours.poll(SECONDS)
    expert.set_epoch(1, [0])
    assert expert.receive() == []
    process.kill()
    until(expert, lambda: expert.lost_peers() == {0})
    assert expert.receive() == []
    process.join(SECONDS)

    second = attention_in(road, 2, incarnation=1)
    expert.set_epoch(2, [0])
    check_sleeps(expert)
    for mark in range(3):
        round_trip(second, expert, float(mark))
    second.close()
    expert.close()


def reply_halfway(road: Road, told: Connection) -> None:
    port = join_expert(road, Seat(GEOMETRY, 0))
    told.send("listening")
    assert told.recv() == "met"
    port.set_epoch(1, [0])
    message = received(port)
    stop_before_the_word(told)
    port.reply_buffer(message).fill_(torch.nan)
    port.reply(message)


def test_an_expert_node_that_is_killed_while_its_device_stores(road: Road) -> None:
    ours, theirs = Pipe()
    process = fork(reply_halfway, road, theirs)
    assert ours.poll(SECONDS)
    assert ours.recv() == "listening"
    attention = attention_in(road, 1)
    ours.send("met")
    attention.dispatch(0, 3, torch.ones(ROWS, GEOMETRY.hidden_size), [part()])
    assert ours.poll(SECONDS)
    assert attention.poll() == []
    process.kill()
    until(attention, lambda: attention.lost_peers() == {0})
    assert attention.poll() == []
    process.join(SECONDS)

    second = join_expert(road, Seat(GEOMETRY, 0, incarnation=1))
    meet(attention, incarnation=1)
    attention.set_epoch(2, [0])
    second.set_epoch(2, [0])
    check_sleeps(attention)
    for mark in range(3):
        round_trip(attention, second, float(mark))
    attention.close()
    second.close()


def dispatch_for_ever(road: Road, incarnation: int, told: Connection) -> None:
    port = attention_in(road, incarnation + 1, incarnation)
    told.send("met")
    for number in range(10**9):
        hidden = torch.full((ROWS, GEOMETRY.hidden_size), float(number))
        port.dispatch(0, number, hidden, [part()])
        until(port, lambda: bool(port.poll()))


def test_attention_nodes_that_are_killed_at_any_moment(road: Road) -> None:
    """No message is ever seen in part, whoever is killed in the middle of whatever."""
    expert = join_expert(road, Seat(GEOMETRY, 0))
    for incarnation in range(4):
        ours, theirs = Pipe(duplex=False)
        process = fork(dispatch_for_ever, road, incarnation, theirs)
        assert ours.poll(SECONDS)
        expert.set_epoch(incarnation + 1, [0])
        for number in range(40 * incarnation + 7):
            message = answer(expert)
            assert message.layer == number
            assert message.hidden.unique().tolist() == [float(number)]
        process.kill()
        until(expert, lambda: expert.lost_peers() == {0})
        process.join(SECONDS)
    expert.close()


# --- who doesn't belong on it ---------------------------------------------------------------------


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
    ("attention", "experts", "road"),
    [(True, True, "ipc"), (True, False, "shm"), (False, True, "shm"), (False, False, "shm")],
)
def test_which_road_joins_the_roles_of_a_host(attention: bool, experts: bool, road: str) -> None:
    assert road_on_a_host(attention, experts) == road
    assert road in ROADS
