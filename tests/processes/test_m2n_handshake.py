"""Nodes that do not belong together say so, both of them, in bounded time."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from megainfer.errors import ConfigError, MegaInferError, NodeDied, ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.host.connection import OwnEnd
from megainfer.m2n.host.handshake import HELLO_BYTES, Channel, Frame, Hello, Side
from megainfer.m2n.host.meeting import Listener, expert_address
from megainfer.m2n.host.ports import HostAttentionPort
from megainfer.m2n.roads import Seat
from megainfer.m2n.shm.ports import attention_port, expert_port
from tests.support.m2n_cluster import SECONDS, fork, fresh_token, join_all

GEOMETRY = Geometry(1, 1, 1, capacity=6, hidden_size=8, top_k=2, dtype="float32")
PREFIX = struct.Struct("<8sIII")
HELLO, MEMORY, REFUSAL = 1, 2, 3


class Failing(threading.Thread):
    """Runs `target`, which must fail; `error` is how."""

    def __init__(self, target: Callable[[], object]) -> None:
        super().__init__()
        self._run = target
        self.start()

    def run(self) -> None:
        with pytest.raises(MegaInferError) as caught:
            self._run()
        self._error = caught.value

    @property
    def error(self) -> MegaInferError:
        self.join(SECONDS)
        return self._error


def connect(addresses: list[str], seat: Seat, timeout: float) -> HostAttentionPort:
    port = attention_port("", seat)
    port.connect(addresses, timeout)
    return port


def accept(listener: Listener, seat: Seat, timeout: float) -> None:
    expert_port(seat).accept(listener, timeout)


def accepting(
    listener: Listener, geometry: Geometry = GEOMETRY, timeout: float = SECONDS
) -> Failing:
    return Failing(lambda: accept(listener, Seat(geometry, 0), timeout))


@pytest.fixture
def address() -> str:
    return expert_address(fresh_token(), 0)


@pytest.fixture
def listener(address: str):  # type: ignore[no-untyped-def]
    listening = Listener.create(address)
    yield listening
    listening.close()


@pytest.mark.parametrize(
    ("field", "theirs", "ours"),
    [
        ("num_attention", 2, 1),
        ("micro_batches", 3, 1),
        ("capacity", 7, 6),
        ("hidden_size", 9, 8),
        ("top_k", 3, 2),
        ("dtype", "bfloat16", "float32"),
    ],
)
def test_every_field_of_the_geometry(
    listener: Listener, address: str, field: str, theirs: object, ours: object
) -> None:
    expert = accepting(listener)
    other = replace(GEOMETRY, **{field: theirs})
    with pytest.raises(ProtocolError) as caught:
        connect([address], Seat(other, 0, 0), SECONDS)
    said = f"{field} differs: attention node 0 has {theirs}, expert node 0 has {ours}"
    assert str(caught.value) == f"expert node 0 refused: {said}"
    assert said in str(expert.error)


def test_the_number_of_expert_nodes(listener: Listener, address: str) -> None:
    expert = accepting(listener, replace(GEOMETRY, num_expert=2))
    with pytest.raises(
        ProtocolError, match=r"num_expert differs: attention node 0 has 1, .* has 2"
    ):
        connect([address], Seat(GEOMETRY, 0, 0), SECONDS)
    assert "num_expert differs" in str(expert.error)
    with pytest.raises(ProtocolError, match="2 addresses of 1 expert nodes"):
        connect([address, address], Seat(GEOMETRY, 0, 0), SECONDS)


def test_an_index_that_is_none(listener: Listener, address: str) -> None:
    two = replace(GEOMETRY, num_attention=2)
    expert = accepting(listener, two)
    port = connect([address], Seat(two, 1), SECONDS)
    with pytest.raises(ProtocolError, match="index: expected one below 2, found 2"):
        connect([address], Seat(two, 2), SECONDS)
    assert "attention node 2: index: expected one below 2, found 2" in str(expert.error)
    port.wait(1000.0)  # the expert node has given up, and its peers see it
    assert port.lost_peers() == {0}
    port.close()


def test_an_expert_node_of_another_incarnation(listener: Listener, address: str) -> None:
    expert = Failing(lambda: accept(listener, Seat(GEOMETRY, 0, 0, 3), SECONDS))
    with pytest.raises(ProtocolError, match=r"expected 0\.0 at this address, found 0\.3"):
        connect([address], Seat(GEOMETRY, 0), SECONDS)
    assert "found 0.3" in str(expert.error)


def test_an_expert_node_at_anothers_address(listener: Listener, address: str) -> None:
    two = replace(GEOMETRY, num_expert=2)
    expert = Failing(lambda: accept(listener, Seat(two, 1, 0), SECONDS))
    with pytest.raises(ProtocolError, match=r"index: expected 0\.0 at this address, found 1\.0"):
        connect([address, address], Seat(two, 0, 0), SECONDS)
    assert "attention node 0 refused: index: expected 0.0" in str(expert.error)


def test_a_refusal_is_heard_by_who_still_speaks() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ProtocolError, match="expert node 3: too late"):
            Channel(ours, time.monotonic() + SECONDS, "expert node 3").refuse("too late")
        ours.close()
        channel = Channel(theirs, time.monotonic() + SECONDS, "attention node 2")
        with pytest.raises(ProtocolError, match="attention node 2 refused: too late"):
            channel.send(Frame.MEMORY, b"")
        with pytest.raises(NodeDied, match="attention node 2 closed the connection"):
            channel.send(Frame.MEMORY, b"")


def sockets_and_bells() -> int:
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of the listing itself
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(target.startswith(("socket:", "anon_inode:[eventfd")) for target in targets)


def test_a_refused_node_keeps_no_descriptor(listener: Listener, address: str) -> None:
    before = sockets_and_bells()
    expert = accepting(listener)
    with pytest.raises(ProtocolError) as caught:
        connect([address], Seat(replace(GEOMETRY, top_k=9), 0, 0), SECONDS)
    assert "top_k" in str(expert.error)
    assert "top_k" in str(caught.value)  # both errors, and so their frames, are still alive
    assert sockets_and_bells() == before


# --- peers made by hand ---------------------------------------------------------------------------


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        assert chunk
        data += chunk
    return data


def read_refusal(connection: socket.socket) -> str:
    magic, version, kind, length = PREFIX.unpack(read_exactly(connection, PREFIX.size))
    assert (magic, version, kind) == (b"MEGAM2N\0", 3, REFUSAL)
    return read_exactly(connection, length).decode()


def raw_client(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SECONDS)
    connection.connect(address)
    return connection


def test_hello_is_these_bytes(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.settimeout(SECONDS)
        listening.bind(address)
        listening.listen()
        geometry = Geometry(2, 1, 3, 4, 5, 6, "bfloat16")
        attention = Failing(lambda: connect([address], Seat(geometry, 1, 0, 9), SECONDS))
        connection, _ = listening.accept()
        with connection:
            assert read_exactly(connection, 20 + 64) == (
                b"MEGAM2N\0"
                b"\x03\0\0\0"  # version
                b"\x01\0\0\0"  # frame: HELLO
                b"\x40\0\0\0"  # bytes of body
                b"\x01\0\0\0"  # role: attention
                b"\x01\0\0\0"  # index
                b"\x09\0\0\0\0\0\0\0"  # incarnation
                b"\x02\0\0\0\x01\0\0\0\x03\0\0\0"  # M, N, m
                b"\x04\0\0\0\x05\0\0\0\x06\0\0\0"  # capacity, hidden_size, top_k
                b"\x02\0\0\0"  # bfloat16
                b"\x01\0\0\0" + bytes(16)  # payloads: in the host's memory  # on no device
            )
        assert isinstance(attention.error, NodeDied)
        assert "expert node 0 closed the connection" in str(attention.error)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ((b"MEGAM2N\0", 99, HELLO, 7), "peer speaks M2N version 99, this is 3"),
        ((b"GET / HT", 3, HELLO, 64), "peer begins with b'GET / HT'"),
        ((b"MEGAM2N\0", 3, HELLO, 43), "frame 1 of 43 bytes, expected 1 of 64"),
        ((b"MEGAM2N\0", 3, MEMORY, 64), "frame 2 of 64 bytes, expected 1 of 64"),
    ],
)
def test_an_expert_node_refuses_a_foreign_peer(
    listener: Listener, address: str, prefix: tuple[bytes, int, int, int], reason: str
) -> None:
    expert = accepting(listener)
    with raw_client(address) as connection:
        connection.sendall(PREFIX.pack(*prefix))
        assert reason in read_refusal(connection)
    assert isinstance(expert.error, ProtocolError)
    assert f"a node that connects: {reason}" in str(expert.error)


def test_an_attention_node_refuses_another_version(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.settimeout(SECONDS)
        listening.bind(address)
        listening.listen()
        attention = Failing(lambda: connect([address], Seat(GEOMETRY, 0, 0), SECONDS))
        connection, _ = listening.accept()
        with connection:
            read_exactly(connection, 20 + 64)
            connection.sendall(PREFIX.pack(b"MEGAM2N\0", 99, HELLO, 0))
            assert read_refusal(connection) == "peer speaks M2N version 99, this is 3"
        assert str(attention.error) == "expert node 0: peer speaks M2N version 99, this is 3"


def test_the_refusal_of_another_version_is_understood(listener: Listener, address: str) -> None:
    expert = accepting(listener)
    text = b"peer speaks M2N version 1, this is 99"
    with raw_client(address) as connection:
        connection.sendall(PREFIX.pack(b"MEGAM2N\0", 99, REFUSAL, len(text)) + text)
        assert str(expert.error) == f"a node that connects refused: {text.decode()}"


def test_a_strangers_reason_is_one_line_of_a_log(listener: Listener, address: str) -> None:
    expert = accepting(listener)
    text = "so\nCRITICAL \x1b[2J\u202e".encode()
    with raw_client(address) as connection:
        connection.sendall(PREFIX.pack(b"MEGAM2N\0", 99, REFUSAL, len(text)) + text)
        said = "so\ufffdCRITICAL \ufffd[2J\ufffd"
        assert str(expert.error) == f"a node that connects refused: {said}"


def test_two_expert_nodes_do_not_meet(listener: Listener, address: str) -> None:
    expert = accepting(listener)
    with raw_client(address) as connection:
        channel = Channel(connection, time.monotonic() + SECONDS, "expert node 0")
        channel.send(Frame.HELLO, Hello.of(Side.EXPERT, Seat(GEOMETRY, 0, 0)).pack())
        with pytest.raises(ProtocolError, match=r"role: expected attention \(1\), found 2"):
            channel.receive(Frame.HELLO, HELLO_BYTES)
    assert "role: expected attention (1), found 2" in str(expert.error)


@pytest.mark.parametrize(("size", "keep"), [(GEOMETRY.attention_region_bytes + 64, 2), (4096, 1)])
def test_wrong_memory_is_refused(listener: Listener, address: str, size: int, keep: int) -> None:
    expert = accepting(listener)
    home = OwnEnd.create(size)
    with raw_client(address) as connection:
        channel = Channel(connection, time.monotonic() + SECONDS, "expert node 0")
        channel.send(Frame.HELLO, Hello.of(Side.ATTENTION, Seat(GEOMETRY, 0, 0)).pack())
        channel.receive(Frame.HELLO, HELLO_BYTES)
        _, files = channel.receive(Frame.MEMORY, 0)
        descriptors = [home.file.fileno(), home.bell.fileno()][:keep]
        channel.send(Frame.MEMORY, b"", descriptors)
        reason = read_refusal(connection)
    wrong = f"slots have {size} bytes, expected {GEOMETRY.attention_region_bytes}"
    assert (wrong if keep == 2 else "1 file descriptors, expected 2") in reason
    assert reason in str(expert.error)
    home.close()
    for file in files:
        file.close()


# --- silence and strangers ------------------------------------------------------------------------


def test_nobody_listens(address: str) -> None:
    with pytest.raises(NodeDied, match="expert node 0 did not listen in time"):
        connect([address], Seat(GEOMETRY, 0, 0), 0.02)


def test_nobody_connects(listener: Listener) -> None:
    with pytest.raises(NodeDied, match=r"attention nodes \[0\] did not connect in time"):
        accept(listener, Seat(GEOMETRY, 0, 0), 0.02)


def test_a_silent_peer(listener: Listener, address: str) -> None:
    with raw_client(address), pytest.raises(NodeDied, match="a node that connects did not answer"):
        accept(listener, Seat(GEOMETRY, 0, 0), 0.05)


def test_a_listener_that_does_not_answer(listener: Listener, address: str) -> None:
    with pytest.raises(NodeDied, match="expert node 0 did not answer"):
        connect([address], Seat(GEOMETRY, 0, 0), 0.05)


def test_an_address_is_taken_once(listener: Listener, address: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen at .*in use"):
        Listener.create(address)


def knock_as_another_user(address: str) -> None:
    os.setuid(65534)
    with raw_client(address) as connection:
        assert connection.recv(1) == b""  # shown the door without a word


def listen_as_another_user(address: str, ready: int) -> None:
    os.setuid(65534)
    listening = Listener.create(address)
    os.write(ready, b"x")
    listening.accept(time.monotonic() + SECONDS)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@needs_root
def test_another_user_is_not_let_in(listener: Listener, address: str) -> None:
    stranger = fork(knock_as_another_user, address)
    with pytest.raises(NodeDied, match=r"attention nodes \[0\] did not connect"):
        accept(listener, Seat(GEOMETRY, 0, 0), 0.5)
    join_all([stranger])


@needs_root
def test_another_users_socket_is_not_trusted(address: str) -> None:
    reader, writer = os.pipe()
    squatter = fork(listen_as_another_user, address, writer)
    assert os.read(reader, 1) == b"x"
    with pytest.raises(ProtocolError, match="expert node 0 runs as user 65534, this is 0"):
        connect([address], Seat(GEOMETRY, 0, 0), SECONDS)
    squatter.kill()
    squatter.join(SECONDS)
    os.close(reader)
    os.close(writer)
