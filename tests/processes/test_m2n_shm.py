"""Shared memory between real processes: load, death, and that nothing is left behind."""

import gc
import os
import signal
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.host.region import Bell, create_region, map_region
from megainfer.m2n.mailbox import AttentionPort, Dispatch, Handle, Part
from megainfer.m2n.reference import ExpertChoices, make_parts, marked_tokens, moe, serve
from megainfer.m2n.roads import (
    ROADS,
    PortOptions,
    Road,
    Seat,
    open_attention_port,
    open_expert_port,
)
from megainfer.m2n.slotted import native_library
from tests.support import twin_road
from tests.support.m2n_cluster import (
    SECONDS,
    affine_expert,
    fork,
    fresh_token,
    join_all,
    random_routing,
    road_of,
    shm_cluster,
    spread,
)
from tests.support.processes import shared_memory, shared_memory_left
from tests.support.twin_road import TWIN


@pytest.fixture(autouse=True)
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROADS, TWIN, twin_road.__name__)


STEPS = 250  # of each micro-batch on each attention node
GEOMETRY = Geometry(2, 2, 2, capacity=6, hidden_size=8, top_k=2, dtype="float32")
HOMES = spread(5, 2)
PAIR = Geometry(1, 1, 1, capacity=6, hidden_size=8, top_k=2, dtype="float32")


# --- load ---------------------------------------------------------------------------------------


def expert_main(road: Road, node: int) -> None:
    """Serve until every attention node has left; check that rows are where they belong."""
    port = open_expert_port(road, Seat(GEOMETRY, node, 0), SECONDS)
    expert = affine_expert(HOMES)
    while len(port.lost_peers()) < GEOMETRY.num_attention:
        port.wait(SECONDS)
        for message in port.receive():
            assert isinstance(message, Dispatch)
            check_marks(message)
            if message.num_rows:
                reply = serve(node, message.hidden, message.local_ids, message.weights, expert)
                port.reply_buffer(message).copy_(reply)
                port.reply(message)
    assert port.counters()["dropped"] == 0


def marked(source: int, micro_batch: int, layer: int, num_tokens: int) -> torch.Tensor:
    hidden = marked_tokens(num_tokens, GEOMETRY.hidden_size, source, torch.float32)
    hidden[:, 0], hidden[:, 1], hidden[:, 2] = source, micro_batch, layer
    hidden[:, 3] = torch.arange(num_tokens)
    return hidden


def check_marks(message: Dispatch) -> None:
    whole = marked(message.source, message.micro_batch, message.layer, GEOMETRY.capacity)
    rows = message.hidden[:, 3].long()
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(message.hidden, whole[rows])


def attention_main(road: Road, index: int) -> None:
    """Keep both micro-batches in flight; compare every layer with the reference."""
    port = open_attention_port(road, Seat(GEOMETRY, index, 0), SECONDS)
    generator = torch.Generator().manual_seed(index)
    flying = {m: send(port, index, m, 0, generator) for m in range(GEOMETRY.micro_batches)}
    while flying:
        port.wait(SECONDS)
        assert not port.lost_peers()
        for arrival in port.poll():
            handle, _, waiting = flying[arrival.micro_batch]
            assert arrival.layer == handle.layer
            waiting.discard(arrival.expert_node)
        for m in [m for m, (_, _, waiting) in flying.items() if not waiting]:
            handle, expected, _ = flying.pop(m)
            out = torch.zeros_like(expected)
            port.combine(handle, out)
            assert torch.equal(out, expected)
            if handle.layer + 1 < STEPS:
                flying[m] = send(port, index, m, handle.layer + 1, generator)
    port.close()


def send(
    port: AttentionPort, index: int, micro_batch: int, layer: int, generator: torch.Generator
) -> tuple[Handle, torch.Tensor, set[int]]:
    num_tokens = int(torch.randint(1, GEOMETRY.capacity + 1, (1,), generator=generator))
    routing = random_routing(num_tokens, GEOMETRY.top_k, HOMES, generator)
    hidden = marked(index, micro_batch, layer, num_tokens)
    handle = port.dispatch(micro_batch, layer, hidden, make_parts(routing, GEOMETRY.num_expert))
    expected = moe(hidden, routing, GEOMETRY.num_expert, affine_expert(HOMES))
    return handle, expected, set(handle.awaiting)


BRISK = PortOptions(spin_seconds=1e-4)
PYTHON, NATIVE = PortOptions(mover="plain"), PortOptions(mover="native")
built = pytest.mark.skipif(not native_library.is_built(), reason="M2N is not built")


@pytest.mark.parametrize(
    ("kind", "attention", "expert"),
    [
        pytest.param("shm", PYTHON, PYTHON, id="python"),
        pytest.param("shm", replace(PYTHON, spin_seconds=1e-4), PYTHON, id="python, spinning"),
        pytest.param("shm", NATIVE, NATIVE, id="native", marks=built),
        pytest.param(
            "shm",
            replace(NATIVE, spin_seconds=1e-4),
            replace(NATIVE, spin_seconds=1e-3),
            id="native, spinning",
            marks=built,
        ),
        pytest.param("shm", NATIVE, PYTHON, id="native to python", marks=built),
        pytest.param(
            "shm", PYTHON, replace(NATIVE, spin_seconds=1e-4), id="python to native", marks=built
        ),
        pytest.param("dist", PYTHON, PYTHON, id="dist"),
        pytest.param(TWIN, PYTHON, PYTHON, id="ipc's twin"),
        pytest.param(TWIN, NATIVE, BRISK, id="ipc's twin, native to spinning", marks=built),
    ],
)
def test_thousands_of_messages_between_processes(
    kind: str, attention: PortOptions, expert: PortOptions
) -> None:
    token = fresh_token()
    experts, attentions = road_of(kind, expert, token), road_of(kind, attention, token)
    join_all(
        [fork(expert_main, experts, node) for node in range(GEOMETRY.num_expert)]
        + [fork(attention_main, attentions, i) for i in range(GEOMETRY.num_attention)]
    )


# --- death --------------------------------------------------------------------------------------


def silent_expert(road: Road, ready: Connection) -> None:
    port = open_expert_port(road, Seat(PAIR, 0, 0), SECONDS)
    ready.send("ready")
    port.wait(SECONDS)  # for ever, as far as the test is concerned
    signal.pause()


def silent_attention(road: Road, ready: Connection) -> None:
    port = open_attention_port(road, Seat(PAIR, 0, 0), SECONDS)
    ready.send("ready")
    while not port.lost_peers():
        port.wait(SECONDS)
    ready.send("lost")
    signal.pause()


def sockets_and_memory() -> list[str]:
    return Path("/proc/net/unix").read_text().splitlines() + os.listdir("/dev/shm")


@pytest.mark.parametrize("kind", ["shm", TWIN, "dist"])
def test_a_killed_expert_node_is_noticed_and_nothing_is_left(kind: str) -> None:
    road = road_of(kind)
    memory_before = shared_memory()
    ours, theirs = Pipe()
    expert = fork(silent_expert, road, theirs)
    port = open_attention_port(road, Seat(PAIR, 0, 0), SECONDS)
    assert ours.poll(SECONDS)
    assert any(road.token in line for line in sockets_and_memory())
    part = Part(torch.arange(1), torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 2))
    port.dispatch(0, 0, torch.zeros(1, 8), [part])
    assert port.lost_peers() == frozenset()

    expert.kill()
    port.wait(1000.0)  # the test's timeout would end it
    assert port.lost_peers() == {0}
    for epoch in range(1, 4):  # its memory and bell are still ours to use
        port.set_epoch(epoch)
        port.dispatch(0, 0, torch.zeros(1, 8), [part])
    port.close()
    expert.join(SECONDS)
    assert not any(road.token in line for line in sockets_and_memory())
    assert shared_memory_left(memory_before) == set()


@pytest.mark.parametrize("kind", ["shm", TWIN, "dist"])
def test_a_killed_attention_node_is_noticed(kind: str) -> None:
    road = road_of(kind)
    ours, theirs = Pipe()
    attention = fork(silent_attention, road, theirs)
    port = open_expert_port(road, Seat(PAIR, 0, 0), SECONDS)
    assert ours.poll(SECONDS)
    attention.kill()
    port.wait(1000.0)
    assert port.lost_peers() == {0}
    attention.join(SECONDS)
    port.close()


@pytest.mark.parametrize("kind", ["shm", TWIN, "dist"])
def test_both_ends_killed_leave_nothing(kind: str) -> None:
    road = road_of(kind)
    memory_before = shared_memory()
    ours, theirs = Pipe()
    nodes = [fork(silent_expert, road, theirs), fork(silent_attention, road, theirs)]
    for _ in nodes:
        assert ours.poll(SECONDS)
        assert ours.recv() == "ready"
    for node in nodes:
        node.kill()
        node.join(SECONDS)
    assert not any(road.token in line for line in sockets_and_memory())
    assert shared_memory_left(memory_before) == set()


@pytest.mark.parametrize("kind", ["shm", TWIN, "dist"])
def test_a_survivor_among_processes_hears_of_the_death(kind: str) -> None:
    road = road_of(kind)
    ours, theirs = Pipe()
    expert, attention = fork(silent_expert, road, theirs), fork(silent_attention, road, theirs)
    for _ in range(2):
        assert ours.poll(SECONDS)
        assert ours.recv() == "ready"
    expert.kill()
    assert ours.poll(SECONDS)
    assert ours.recv() == "lost"
    attention.kill()
    for node in (expert, attention):
        node.join(SECONDS)


# --- the pieces ---------------------------------------------------------------------------------


def test_a_full_bell_rings_on() -> None:
    bell = Bell.create()
    os.eventfd_write(bell.fileno(), 2**64 - 2)  # the most it holds
    bell.ring()
    bell.silence()
    bell.silence()  # nothing to hear: no block
    bell.ring()
    assert os.eventfd_read(bell.fileno()) == 1
    bell.close()


def test_slots_cannot_shrink_under_their_readers() -> None:
    file = create_region(4096)
    with pytest.raises(PermissionError):
        os.ftruncate(file.fileno(), 0)
    with pytest.raises(ProtocolError, match="slots have 4096 bytes, expected 8192"):
        map_region(file, 8192)
    file.close()


def test_unsealed_slots_are_refused() -> None:
    file = os.fdopen(os.memfd_create("plain"), "r+b", buffering=0)
    os.ftruncate(file.fileno(), 4096)
    with pytest.raises(ProtocolError, match="not sealed"):
        map_region(file, 4096)  # type: ignore[arg-type]
    file.close()


@pytest.mark.parametrize("kind", ["shm", TWIN, "dist"])
def test_views_outlive_the_port(kind: str) -> None:
    """A kernel may still read a slot when its port is closed: memory goes with its last view."""
    with shm_cluster(PAIR, kind=kind) as cluster:
        part = Part(torch.arange(1), torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 2))
        cluster.attention[0].dispatch(0, 0, torch.full((1, 8), 5.0), [part])
        cluster.experts[0].wait(SECONDS)
        (message,) = cluster.experts[0].receive()
    del cluster
    assert isinstance(message, Dispatch)
    assert message.hidden.unique().tolist() == [5.0]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", ["shm", TWIN, "dist"])
def test_closed_ports_keep_no_descriptor(kind: str) -> None:
    gc.collect()  # what earlier tests held must not be given back meanwhile
    before = open_descriptors()
    for _ in range(2):
        with shm_cluster(GEOMETRY, kind=kind) as cluster:
            handle = cluster.attention[0].dispatch(
                0, 0, torch.zeros(1, 8), make_parts(one_token(), GEOMETRY.num_expert)
            )
            assert open_descriptors() > before
            assert handle.awaiting
        del cluster
    assert open_descriptors() == before


def one_token() -> ExpertChoices:
    return random_routing(1, 2, HOMES, torch.Generator().manual_seed(0))
