"""Ports whose peers come, go and come back while they serve."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Event

import pytest
import torch

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, JoiningPort, Part, Rest
from megainfer.m2n.roads import ROADS, PortOptions, Road, Seat, join_attention, join_expert
from megainfer.m2n.slotted import native_library
from tests.support import twin_road
from tests.support.m2n_cluster import SECONDS, fork, road_of
from tests.support.twin_road import TWIN

GEOMETRY = Geometry(2, 2, 1, capacity=4, hidden_size=8, top_k=2, dtype="float32")


built = pytest.mark.skipif(not native_library.is_built(), reason="M2N is not built")


@pytest.fixture(
    params=[
        ("shm", "plain"),
        pytest.param(("shm", "native"), marks=built),
        (TWIN, "plain"),
        pytest.param((TWIN, "native"), marks=built),
        ("dist", None),
        ("mixed", None),
    ],
    ids=lambda param: " ".join(filter(None, param)),
)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Road:
    monkeypatch.setitem(ROADS, TWIN, twin_road.__name__)
    kind, mover = request.param
    return road_of(kind, PortOptions(mover=mover))


ADDRESSES: dict[tuple[str, int, int], tuple[str, int] | None] = {}
"""Of expert nodes that are met as if they were on another host, by road, index, incarnation."""


def attention_of(road: Road, index: int, incarnation: int = 0) -> JoiningPort:
    return join_attention(road, Seat(GEOMETRY, index, 0, incarnation))


def expert_of(road: Road, index: int, incarnation: int = 0) -> ExpertPort:
    """On the road `mixed` every other one is elsewhere, and so is who takes the place of one that
    is here."""
    port = join_expert(road, Seat(GEOMETRY, index, 0, incarnation))
    if road.kind == "mixed" and (index + incarnation) % 2:
        ADDRESSES[road.token, index, incarnation] = port.address
    return port


def meet(attention: JoiningPort, expert: int, incarnation: int = 0, token: str = "") -> None:
    met = Event()
    address = ADDRESSES.get((token, expert, incarnation))
    attention.meet(expert, incarnation, SECONDS, met.set, address)
    assert met.wait(SECONDS)


def enter(epoch: int, attention: dict[int, AttentionPort], experts: dict[int, ExpertPort]) -> None:
    for port in attention.values():
        port.set_epoch(epoch, list(experts))
    for port in experts.values():
        port.set_epoch(epoch, list(attention))


def part_of(rows: int) -> Part:
    ids = torch.zeros(rows, GEOMETRY.top_k, dtype=torch.int32)
    return Part(torch.arange(rows), ids, torch.ones(rows, GEOMETRY.top_k))


def parts_for(*experts: int) -> Sequence[Part]:
    return [part_of(2 if node in experts else 0) for node in range(GEOMETRY.num_expert)]


def until(port: AttentionPort | ExpertPort, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        port.wait(SECONDS)


def received(port: ExpertPort) -> list[Dispatch | Rest]:
    messages: list[Dispatch | Rest] = []

    def look() -> bool:
        messages.extend(port.receive())
        return bool(messages)

    until(port, look)
    return messages


def round_trip(attention: AttentionPort, expert: ExpertPort, node: int, mark: float) -> None:
    """One dispatch to one expert node, which doubles it."""
    hidden = torch.full((2, GEOMETRY.hidden_size), mark)
    handle = attention.dispatch(0, 3, hidden, parts_for(node))
    (message,) = received(expert)
    assert isinstance(message, Dispatch)
    assert torch.equal(message.hidden, hidden)
    expert.reply_buffer(message).copy_(2 * message.hidden)
    expert.reply(message)
    until(attention, lambda: bool(attention.poll()))
    out = torch.zeros_like(hidden)
    attention.combine(handle, out)
    assert torch.equal(out, 2 * hidden)


@contextlib.contextmanager
def closing(*ports: AttentionPort | ExpertPort) -> Iterator[None]:
    try:
        yield
    finally:
        for port in ports:
            port.close()


def test_nobody_is_a_member_before_it_was_met(road: Road) -> None:
    attention, expert = attention_of(road, 0), expert_of(road, 0)
    with closing(attention, expert):
        with pytest.raises(ProtocolError, match=r"peers \[0\] are members of epoch 1, but never"):
            attention.set_epoch(1, [0])
        meet(attention, 0, token=road.token)
        enter(1, {0: attention}, {0: expert})
        round_trip(attention, expert, 0, 1.0)


def test_an_expert_node_that_comes_back_takes_its_place(road: Road) -> None:
    attention, first, other = attention_of(road, 0), expert_of(road, 0), expert_of(road, 1)
    meet(attention, 0, token=road.token)
    meet(attention, 1, token=road.token)
    enter(1, {0: attention}, {0: first, 1: other})
    for mark in range(3):
        round_trip(attention, first, 0, float(mark))
        other.receive()
    attention.dispatch(0, 3, torch.zeros(2, GEOMETRY.hidden_size), parts_for(0, 1))
    first.close()  # it dies with a dispatch unanswered
    until(attention, lambda: attention.lost_peers() == {0})

    second = expert_of(road, 0, incarnation=1)
    with closing(attention, second, other):
        meet(attention, 0, incarnation=1, token=road.token)
        assert attention.lost_peers() == {0}  # until the epoch changes
        enter(2, {0: attention}, {0: second, 1: other})
        assert attention.lost_peers() == frozenset()
        assert second.receive() == []
        for mark in range(3):
            round_trip(attention, second, 0, float(mark))
            other.receive()
        told = attention.lost_peers()
        second.close()
        until(attention, lambda: attention.lost_peers() == {0})
        assert told == frozenset(), "by which a later loss is seen to be news"


def test_an_attention_node_that_comes_back_counts_from_the_beginning(road: Road) -> None:
    expert, first, other = expert_of(road, 0), attention_of(road, 0), attention_of(road, 1)
    meet(first, 0, token=road.token)
    meet(other, 0, token=road.token)
    enter(1, {0: first, 1: other}, {0: expert})
    for mark in range(5):  # its successor's numbers are lower than these
        round_trip(first, expert, 0, float(mark))
    first.dispatch(0, 3, torch.zeros(2, GEOMETRY.hidden_size), parts_for(0))
    first.close()
    until(expert, lambda: expert.lost_peers() == {0})

    second = attention_of(road, 0, incarnation=1)
    with closing(expert, second, other):
        meet(second, 0, token=road.token)
        # It enters first: what it sends is parked until the expert node is in that epoch too.
        second.set_epoch(2, [0])
        hidden = torch.full((2, GEOMETRY.hidden_size), 7.0)
        second.dispatch(0, 3, hidden, parts_for(0))
        expert.receive()
        enter(2, {0: second, 1: other}, {0: expert})
        (message,) = received(expert)
        assert isinstance(message, Dispatch)
        assert torch.equal(message.hidden, hidden)
        assert message.source == 0


def test_who_leaves_for_good_is_forgotten(road: Road) -> None:
    attention, expert, leaving = attention_of(road, 0), expert_of(road, 0), expert_of(road, 1)
    before = len(os.listdir("/proc/self/fd"))
    with closing(attention, expert):
        meet(attention, 0, token=road.token)
        meet(attention, 1, token=road.token)
        enter(1, {0: attention}, {0: expert, 1: leaving})
        leaving.close()
        until(attention, lambda: attention.lost_peers() == {1})
        enter(2, {0: attention}, {0: expert})
        round_trip(attention, expert, 0, 1.0)
        with pytest.raises(ProtocolError, match=r"peers \[1\] are members of epoch 3"):
            attention.set_epoch(3, [0, 1])
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_killed_attention_process_is_replaced_by_another(road: Road) -> None:
    """The expert node's process sees three incarnations, one after another killed by SIGKILL."""
    expert = expert_of(road, 0)
    with closing(expert):
        for incarnation in range(3):
            ours, theirs = Pipe(duplex=False)
            process = fork(dispatch_and_wait, road, incarnation, theirs)
            assert ours.poll(SECONDS)
            expert.set_epoch(incarnation + 1, [0])
            found: list[Dispatch | Rest] = []
            while not any(isinstance(m, Dispatch) for m in found):
                found = received(expert)
            (message,) = found
            assert isinstance(message, Dispatch)
            assert message.hidden.unique().tolist() == [float(incarnation)]
            process.kill()
            process.join(SECONDS)
            until(expert, lambda: expert.lost_peers() == {0})


def dispatch_and_wait(road: Road, incarnation: int, told: Connection) -> None:
    port = attention_of(road, 0, incarnation)
    meet(port, 0, token=road.token)
    told.send("met")
    port.set_epoch(incarnation + 1, [0])
    hidden = torch.full((2, GEOMETRY.hidden_size), float(incarnation))
    port.dispatch(0, 3, hidden, parts_for(0))
    while True:
        port.wait(SECONDS)
