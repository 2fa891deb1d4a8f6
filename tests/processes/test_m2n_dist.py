"""The road `dist` between real processes: strangers, liars, and peers that stop in the middle."""

import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Event

import pytest
import torch

from megainfer.errors import ConfigError, NodeDied, ProtocolError
from megainfer.m2n.dist import link, site
from megainfer.m2n.dist.link import Link
from megainfer.m2n.dist.listening import Address
from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Road, Seat
from tests.support.gpus import NCCL_ON_ONE_GPU
from tests.support.m2n_cluster import SECONDS, fork, fresh_token, road_of
from tests.support.served import run_module

GEOMETRY = Geometry(2, 2, 1, capacity=2048, hidden_size=512, top_k=2, dtype="float32")
OTHER_KEY = "another key that is long enough, too"
PREFIX = struct.Struct("<8sIII")


def until(port: AttentionPort | ExpertPort, ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        port.wait(SECONDS)


def meet(attention: DistAttentionPort, expert: int) -> None:
    attention.visit((expert, 0), time.monotonic() + SECONDS)


def links_of(attention: DistAttentionPort, expert: DistExpertPort) -> tuple[Link, Link]:
    """Both ends of the only pair; its expert node is done with it a little later."""
    with expert._arrived:
        assert expert._arrived.wait_for(lambda: expert._known, SECONDS)
    (to_expert,), (to_attention,) = attention._site._links, expert._site._links
    return to_expert, to_attention


def part_of(rows: int) -> Part:
    choices = (rows, GEOMETRY.top_k)
    ids = torch.zeros(choices, dtype=torch.int32)
    return Part(torch.arange(rows), ids, torch.ones(choices))


@pytest.fixture
def road() -> Road:
    return road_of("dist")


@pytest.fixture
def attention(road: Road) -> Iterator[DistAttentionPort]:
    port = DistAttentionPort(road, Seat(GEOMETRY, 0))
    yield port
    port.close()


@pytest.fixture
def expert(road: Road) -> Iterator[DistExpertPort]:
    port = DistExpertPort(road, Seat(GEOMETRY, 0))
    yield port
    port.close()


def serve(road: Road, node: int, told: Connection) -> None:
    """Double what comes, for ever, in the epochs that it is told."""
    port = DistExpertPort(road, Seat(GEOMETRY, node))
    told.send("listening")
    while True:
        port.wait(SECONDS, [told.fileno()])
        if told.poll():
            port.set_epoch(told.recv(), [0])
        for message in port.receive():
            if isinstance(message, Dispatch) and message.num_rows:
                port.reply_buffer(message).copy_(2 * message.hidden)
                port.reply(message)


# --- who stops costs his own pairs only -----------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_one_that_stops_costs_its_own_pair_only(
    road: Road, attention: DistAttentionPort, end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_SECONDS", 3)
    pipes = [Pipe() for _ in range(2)]
    experts = [fork(serve, road, node, theirs) for node, (_, theirs) in enumerate(pipes)]
    told = [ours for ours, _ in pipes]
    hidden = torch.randn(GEOMETRY.capacity, GEOMETRY.hidden_size)
    both, second = [part_of(len(hidden))] * 2, [part_of(0), part_of(len(hidden))]
    try:
        for node in range(2):
            assert told[node].poll(SECONDS)
            meet(attention, node)
            told[node].send(1)
        attention.set_epoch(1)
        round_trip(attention, hidden, both)
        assert experts[0].pid is not None
        os.kill(experts[0].pid, end)
        attention.dispatch(0, 1, hidden, both)
        until(attention, attention.poll)  # the other one's
        until(attention, lambda: attention.lost_peers() == {0})
        attention.set_epoch(2, [1])
        told[1].send(2)
        round_trip(attention, hidden, second)
    finally:
        for process in experts:
            process.kill()
            process.join(SECONDS)


def round_trip(attention: DistAttentionPort, hidden: torch.Tensor, parts: list[Part]) -> None:
    """Whoever is sent rows doubles them."""
    handle = attention.dispatch(0, 0, hidden, parts)
    arrived: set[int] = set()

    def look() -> bool:
        arrived.update(arrival.expert_node for arrival in attention.poll())
        return arrived == handle.awaiting

    until(attention, look)
    out = torch.zeros_like(hidden)
    attention.combine(handle, out)
    assert torch.equal(out, 2 * len(handle.awaiting) * hidden)


def test_a_message_of_an_ended_epoch_is_not_mixed_with_the_next(
    attention: DistAttentionPort, expert: DistExpertPort
) -> None:
    """Each epoch ends while its message is on its way; another buffer has the next one's rows."""
    meet(attention, 0)
    rows, parts = 1024, [part_of(1024), part_of(0)]
    for epoch in range(1, 4):
        attention.set_epoch(epoch, [0])
        hidden = torch.full((rows, GEOMETRY.hidden_size), float(epoch))
        attention.dispatch(0, 0, hidden, parts)
    expert.set_epoch(3, [0])
    found: list[Dispatch] = []

    def look() -> bool:
        found.extend(m for m in expert.receive() if isinstance(m, Dispatch))
        return bool(found)

    until(expert, look)
    (message,) = found
    assert message.hidden.unique().tolist() == [3.0]
    assert expert.counters()["dropped"] <= 2


def test_one_that_reads_nothing_is_cut_off_and_holds_up_nobody(
    attention: DistAttentionPort,
    expert: DistExpertPort,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meet(attention, 0)
    attention.set_epoch(1, [0])
    to_expert, to_attention = links_of(attention, expert)
    to_expert.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    done = Event()
    monkeypatch.setattr(to_attention, "_take", lambda *_: done.wait(SECONDS))
    deadline = time.monotonic() + SECONDS
    while attention.lost_peers() != {0}:
        attention.rest(0)  # never blocks
        assert time.monotonic() < deadline
    done.set()
    assert "expert node 0 is cut off: it does not read what it is sent" in caplog.text


# --- strangers and liars --------------------------------------------------------------------------


def raw(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=SECONDS)


def test_without_the_key_nobody_is_let_in(
    road: Road, expert: DistExpertPort, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = DistAttentionPort(Road("dist", road.token, key=OTHER_KEY), Seat(GEOMETRY, 0))
    with pytest.raises(ProtocolError, match="refused: it has not proved that it has this instance"):
        meet(stranger, 0)
    stranger.close()
    until(expert, lambda: "expert node 0 let nobody in" in caplog.text or expert.wait(0.01))
    assert "a node that connects: it has not proved" in caplog.text
    assert OTHER_KEY not in caplog.text
    assert road.key not in caplog.text


def test_another_version_is_named(expert: DistExpertPort) -> None:
    with raw(expert.address) as connection:
        read(connection, PREFIX.size + 32)  # its challenge
        connection.sendall(PREFIX.pack(b"MEGAM2N\0", 99, 6, 64) + bytes(64))
        _, _, kind, length = PREFIX.unpack(read(connection, PREFIX.size))
        assert kind == 3
        assert b"peer speaks M2N version 99, this is" in read(connection, length)


def test_other_sizes_are_named(road: Road, expert: DistExpertPort) -> None:
    wider = Geometry(2, 2, 1, capacity=2048, hidden_size=1024, top_k=2, dtype="float32")
    port = DistAttentionPort(road, Seat(wider, 0))
    with pytest.raises(ProtocolError, match="hidden_size differs: attention node 0 has 1024, exp"):
        meet(port, 0)
    port.close()


def test_an_attention_node_that_there_cannot_be(road: Road, expert: DistExpertPort) -> None:
    port = DistAttentionPort(road, Seat(GEOMETRY, 2))
    with pytest.raises(ProtocolError, match="index: expected one below 2, found 2"):
        meet(port, 0)
    port.close()


def test_who_does_not_listen_is_named(road: Road, attention: DistAttentionPort) -> None:
    with pytest.raises(NodeDied, match="expert node 1 did not listen in time"):
        attention.visit((1, 0), time.monotonic() + 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address(*server.getsockname())
    with pytest.raises(NodeDied, match=f"does not answer at 127.0.0.1:{address.port}"):
        attention.visit_at(address, (1, 0), time.monotonic() + 0.05)


def test_a_place_is_taken_once(road: Road, expert: DistExpertPort) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=r"cannot listen at .*in use"):
        DistExpertPort(road, Seat(GEOMETRY, 0))
    assert len(os.listdir("/proc/self/fd")) == before


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more
        data += more
    return data


GOOD = Header(
    kind=Kind.DISPATCH,
    dtype=1,
    layer=0,
    epoch=1,
    sequence=1,
    micro_batch=0,
    source=0,
    rows=0,
    top_k=2,
    hidden_size=512,
    length=0,
    sent_at=0,
)


@pytest.mark.parametrize(
    ("bell", "reason"),
    [
        (lambda: frame(9, b""), "M2N frame 9 of 0 bytes"),
        (lambda: frame(1, bytes(1 << 20)), "M2N frame 1 of 1048576 bytes"),
        (lambda: frame(1, bytes(64)), "begins with"),
        (lambda: frame(1, b"short"), "M2N header of 5 bytes"),
        (lambda: frame(1, GOOD._replace(rows=4096).pack()), "rows 4096, the most is 2048"),
        (lambda: frame(1, GOOD._replace(micro_batch=1).pack()), "micro_batch 1, the most is 0"),
        (
            lambda: frame(1, GOOD._replace(source=1).pack()),
            "from node 1, which is attention",
        ),
        (lambda: frame(1, GOOD._replace(sequence=0).pack()), "sequence 0, they begin with 1"),
        (lambda: frame(1, GOOD._replace(sequence=1 << 63).pack()), f"sequence {1 << 63}, they"),
        (lambda: frame(1, GOOD._replace(kind=Kind.REPLY).pack()), "kind REPLY where DISPATCH or"),
        (lambda: frame(1, GOOD._replace(length=64).pack()), "length 64, agreed was 0"),
        (lambda: frame(1, GOOD.pack() + b"text"), "4 bytes of text, announced were 0"),
    ],
)
def test_what_contradicts_the_layout_cuts_off_who_said_it(
    attention: DistAttentionPort,
    expert: DistExpertPort,
    caplog: pytest.LogCaptureFixture,
    bell: Callable[[], bytes],
    reason: str,
) -> None:
    meet(attention, 0)
    expert.set_epoch(1, [0])
    attention.set_epoch(1, [0])
    (to_expert,) = attention._site._links
    to_expert.connection.sendall(bell())
    until(expert, lambda: expert.lost_peers() == {0})
    until(attention, lambda: attention.lost_peers() == {0})
    assert re.search(f"attention node 0 is cut off: .*{re.escape(reason)}", caplog.text)
    assert expert.receive() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_a_links_thread_is_the_links_end(
    attention: DistAttentionPort,
    expert: DistExpertPort,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meet(attention, 0)
    to_expert, to_attention = links_of(attention, expert)

    def mistaken(*_: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(to_attention, "_take", mistaken)
    to_expert.connection.sendall(frame(1, GOOD.pack()))
    expert.begin()
    until(expert, lambda: expert.lost_peers() == {0})
    assert "attention node 0 is cut off: its thread has failed" in caplog.text


def frame(kind: int, body: bytes) -> bytes:
    return struct.pack("<IIQ", kind, len(body), 0) + body


# --- receives that are posted early ---------------------------------------------------------------


def double(expert: ExpertPort, rows: int) -> torch.Tensor:
    """Answer the next message, of so many rows, which are returned."""
    found: list[Dispatch] = []

    def look() -> bool:
        found.extend(m for m in expert.receive() if isinstance(m, Dispatch) and m.num_rows)
        return bool(found)

    until(expert, look)
    (message,) = found
    assert message.num_rows == rows
    hidden = message.hidden.clone()
    expert.reply_buffer(message).copy_(2 * hidden)
    expert.reply(message)
    return hidden


def test_a_later_payload_does_not_land_before_an_earlier_one(
    attention: DistAttentionPort, expert: DistExpertPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch ends while a message of a size that never came before is on its way, and the next
    is of one whose receive has long been posted."""
    monkeypatch.setattr(site, "PULSE_SECONDS", SECONDS)  # what has arrived only replies tell
    meet(attention, 0)
    to_expert, to_attention = links_of(attention, expert)
    attention.set_epoch(1, [0])
    expert.set_epoch(1, [0])
    for _ in range(2):
        attention.dispatch(0, 0, torch.ones(1, GEOMETRY.hidden_size), [part_of(1), part_of(0)])
        double(expert, 1)
        until(attention, attention.poll)
    kinds: list[link.ControlFrame] = []
    say = to_expert._say
    monkeypatch.setattr(
        to_expert, "_say", lambda kind, body: (kinds.append(kind), say(kind, body))[1]
    )
    may_take, take = Event(), to_attention._take
    monkeypatch.setattr(
        to_attention, "_take", lambda *words: (may_take.wait(SECONDS), take(*words))[1]
    )
    attention.dispatch(0, 0, torch.full((3, GEOMETRY.hidden_size), 3.0), [part_of(3), part_of(0)])
    attention.set_epoch(2, [0])
    hidden = torch.full((1, GEOMETRY.hidden_size), 7.0)
    attention.dispatch(0, 0, hidden, [part_of(1), part_of(0)])
    expert.set_epoch(2, [0])
    may_take.set()
    assert torch.equal(double(expert, 1), hidden)
    assert kinds == [link.ControlFrame.BELL, link.ControlFrame.LATE]
    until(attention, attention.poll)
    attention.dispatch(0, 0, hidden, [part_of(1), part_of(0)])
    assert kinds[-1] == link.ControlFrame.BELL, "all has arrived, as the reply has told"
    assert torch.equal(double(expert, 1), hidden)


# --- nodes that were never one process ------------------------------------------------------------


@pytest.mark.parametrize("groups", ["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def test_processes_of_their_own_exchange_messages(groups: str) -> None:
    if groups == "nccl" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    token, roles = fresh_token(), ("attention", "expert")

    def run(role: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **NCCL_ON_ONE_GPU, "NCCL_HOSTID": role}
        words = (role, token, groups)
        return run_module("tests.support.dist_node", words, environment, 2 * SECONDS)

    with ThreadPoolExecutor(len(roles)) as pool:
        said = list(pool.map(run, roles))
    assert [done.stdout.splitlines()[-1:] for done in said] == [["right"]] * 2, said
