"""What a stand-in passes on between supervisor, front end and attendant, and how it ends."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from megainfer.agent.conversations import RankConversation
from megainfer.frontend.node_socket import new_endpoint
from megainfer.hosts import wire as wire_module
from megainfer.hosts.listening import Address, listen
from megainfer.hosts.other_clock import OtherClock
from megainfer.hosts.rank_stand_in import run_rank_stand_in
from megainfer.hosts.stand_in import There, run_stand_in
from megainfer.hosts.wire import PULSE_SECONDS, Wire, poll
from megainfer.instruments.stage_clock import Span
from megainfer.launch.control import ChildLink, link_pair
from megainfer.launch.heartbeat import Page
from megainfer.launch.station import Station
from megainfer.messages.from_child import Fatal, Loaded, Prepared, Spans
from megainfer.messages.hosts import (
    ForFrontEnd,
    ForNode,
    LogLines,
    NodeEnded,
    Pulse,
    Refused,
    StartNode,
    StartRank,
    ToAttendant,
    to_attendant_decoder,
)
from megainfer.messages.message import Message, Role
from megainfer.messages.requests import node_identity
from megainfer.messages.to_child import FrontEndDown, FrontEndUp, Start
from megainfer.messages.weights import OF_FOLDER

TOKEN, LEASE, SECONDS = b"a token that is long enough to be one", 2.0, 10.0
NODE, INCARNATION = 3, 5
REQUESTS = 24  # of a MiB: more than two kernels hold


@dataclass
class Between:
    """supervisor: its end of the link. attendant: the other host's end of the connection."""

    supervisor: ChildLink
    attendant: Wire[ToAttendant]
    endpoint: str
    thread: Thread

    def heard(self, count: int = 1) -> list[ToAttendant]:
        """The next words that come to the attendant."""
        said: list[ToAttendant] = []
        deadline = monotonic() + SECONDS
        while len(said) < count:
            assert monotonic() < deadline, said
            poll([self.attendant], 0.1)
            said += self.attendant.pump()
        return said

    def ends_with(self, message: Message) -> Fatal | None:
        """What the supervisor hears last, once the attendant has said this."""
        self.attendant.send(message)
        last = self.supervisor.receive(SECONDS) if message != NodeEnded(None) else None
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        assert last is None or isinstance(last, Fatal)
        return last


@pytest.fixture
def between() -> Iterator[Between]:
    ours, theirs = link_pair()
    endpoint = new_endpoint()
    plan: Any = SimpleNamespace(front_endpoint=lambda server, incarnation: endpoint)
    start = StartNode(Role.ATTENTION, NODE, INCARNATION, b"", False, None, OF_FOLDER, LEASE)
    with listen(Address("127.0.0.1", 0), "--host") as listening:
        there = There("right", listening.getsockname()[:2], TOKEN)
        station = Station(theirs, Page(), INCARNATION)
        thread = Thread(target=run_stand_in, args=(station, plan, there, start))
        thread.start()
        listening.settimeout(SECONDS)
        connection, _ = listening.accept()
    wire = Wire(connection, TOKEN, to_attendant_decoder, "the stand-in", False, SECONDS)
    between = Between(ours, wire, endpoint, thread)
    assert between.heard() == [start]
    yield between
    wire.close()
    thread.join(SECONDS)
    assert not thread.is_alive()
    ours.close()


def test_the_supervisor_and_the_node_hear_each_other(between: Between) -> None:
    between.supervisor.send(Start(2))
    assert between.heard() == [Start(2)]
    between.attendant.send(Loaded([(1, 0.5)]))
    assert between.supervisor.receive(SECONDS) == Loaded([(1, 0.5)])
    assert between.ends_with(NodeEnded(None)) is None


def test_spans_are_on_the_clock_of_the_supervisors_host(between: Between) -> None:
    hours = 3600.0 * 30  # a machine that runs for longer
    between.attendant.other_clock = OtherClock(lambda: monotonic() + hours)
    deadline, found = monotonic() + SECONDS, hours
    while found > hours / 2:  # until pulses have told
        assert monotonic() < deadline, "the stand-in never knows"
        poll([between.attendant], 0.1)
        between.attendant.pump()
        span = Span("attention", 0, 1, hours, hours + 1.0)
        between.attendant.send(Spans(7, "attention-3", [span], last=True))
        said = between.supervisor.receive(SECONDS)
        assert isinstance(said, Spans)
        found = said.spans[0].start
    assert found == pytest.approx(0.0, abs=PULSE_SECONDS)
    assert said == Spans(7, "attention-3", [span._replace(start=found, end=found + 1.0)], last=True)
    between.ends_with(NodeEnded(None))


def test_a_front_end_finds_the_node_as_if_it_were_here(between: Between) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as front_end:
        front_end.setsockopt(zmq.LINGER, 0)
        front_end.setsockopt(zmq.RCVTIMEO, int(SECONDS * 1000))
        front_end.bind(between.endpoint)
        between.supervisor.send(FrontEndUp(0, 1))
        assert between.heard() == [FrontEndUp(0, 1)]
        between.attendant.send(ForFrontEnd(0, 1, b"tokens"))
        identity, data = front_end.recv_multipart()
        assert (identity, data) == (node_identity(NODE, INCARNATION), b"tokens")
        front_end.send_multipart([identity, b"a request"])
        assert between.heard() == [ForNode(0, 1, b"a request")]
        between.supervisor.send(FrontEndDown(0, 1))
        assert between.heard() == [FrontEndDown(0, 1)]


def test_requests_that_come_faster_than_the_network_takes_them_wait(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "CROWDED_BYTES", 2**20)
    monkeypatch.setattr(wire_module, "MOST_WAITING_BYTES", 2**22)
    monkeypatch.setattr(between.attendant, "lease", 60.0)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as front_end:
        front_end.setsockopt(zmq.LINGER, 0)
        front_end.setsockopt(zmq.RCVTIMEO, int(SECONDS * 1000))
        front_end.bind(between.endpoint)
        between.supervisor.send(FrontEndUp(0, 1))
        assert between.heard() == [FrontEndUp(0, 1)]
        between.attendant.send(ForFrontEnd(0, 1, b"it is there"))
        identity, _ = front_end.recv_multipart()
        for number in range(REQUESTS):
            front_end.send_multipart([identity, bytes([number]) * 2**20])
            between.attendant.send(Pulse())  # it lives, and reads nothing
        assert between.supervisor.receive(LEASE / 4) is None, "it has not died of it"
        heard = [said.data[0] for said in between.heard(REQUESTS) if isinstance(said, ForNode)]
        assert heard == list(range(REQUESTS))


def test_the_node_hears_of_a_front_end_only_once_that_can_be_reached(between: Between) -> None:
    between.supervisor.send(FrontEndUp(0, 1))
    between.supervisor.send(Start(2))
    assert between.heard() == [Start(2)]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as front_end:
        front_end.setsockopt(zmq.LINGER, 0)
        front_end.bind(between.endpoint)
        assert between.heard() == [FrontEndUp(0, 1)]


def test_what_the_node_writes_has_its_host_and_name(
    between: Between, capfd: pytest.CaptureFixture[str]
) -> None:
    between.attendant.send(LogLines(["one", "two"]))
    between.ends_with(NodeEnded(None))
    assert capfd.readouterr().out == "right attention-3 | one\nright attention-3 | two\n"


@pytest.mark.parametrize(
    ("said", "last"),
    [
        (NodeEnded("no memory"), Fatal("no memory (on host right)")),
        (NodeEnded("killed by SIGKILL", True), Fatal("killed by SIGKILL (on host right)", True)),
        (Refused("another model"), Fatal("host right refuses it: another model")),
    ],
)
def test_it_dies_of_what_the_node_died_of(between: Between, said: Message, last: Fatal) -> None:
    assert between.ends_with(said) == last


def test_a_lost_host_is_its_death_and_no_failure_of_its_own(between: Between) -> None:
    between.attendant.close()
    last = between.supervisor.receive(SECONDS)
    assert isinstance(last, Fatal)
    assert last.befell
    assert last.message == "host right has closed the connection"


def test_a_silent_host_is_its_death_after_the_lease(between: Between) -> None:
    began = monotonic()
    last = between.supervisor.receive(SECONDS)
    assert isinstance(last, Fatal)
    assert last.befell
    assert "host right has been silent for" in last.message
    assert monotonic() - began > LEASE - 0.5


def test_a_host_that_is_not_there_is_named() -> None:
    ours, theirs = link_pair()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        there = There("right", unused.getsockname(), TOKEN)
        start = StartNode(Role.EXPERT, 0, 0, b"", False, None, OF_FOLDER, 0.2)
        plan: Any = None
        run_stand_in(Station(theirs, Page(), 0), plan, there, start)
    last = ours.receive(SECONDS)
    assert isinstance(last, Fatal)
    assert last.befell
    assert "host right can't be reached" in last.message


# --- of a rank ------------------------------------------------------------------------------------

LAST_WORDS = NodeEnded("rank 1: killed by SIGKILL")
START_RANK = StartRank(
    role=Role.EXPERT,
    node=0,
    rank=1,
    incarnation=0,
    plan=b"",
    placement=None,
    weights=OF_FOLDER,
    lease=LEASE,
    address="127.0.0.1",
    port=1,
)


def test_the_end_of_rank_0_is_no_failure_of_who_stands_in_for_another() -> None:
    """It passes on what rank 0 has said, takes what the rank says to nobody, and dies as that."""
    supervisor, own = link_pair()
    rank_0, to_rank_0 = link_pair()
    with listen(Address("127.0.0.1", 0), "--host") as listening:
        there = There("right", listening.getsockname()[:2], TOKEN)
        station = Station(own, Page(), INCARNATION)
        thread = Thread(target=run_rank_stand_in, args=(station, there, START_RANK, to_rank_0))
        thread.start()
        listening.settimeout(SECONDS)
        connection, _ = listening.accept()
    wire = Wire(connection, TOKEN, to_attendant_decoder, "the stand-in", False, SECONDS)
    between = Between(supervisor, wire, "", thread)
    try:
        assert between.heard() == [START_RANK]
        rank_0.send(Start(2))
        assert between.heard() == [Start(2)]
        rank_0.close()
        between.attendant.send(Prepared(1))
        last = between.ends_with(LAST_WORDS)
    finally:
        wire.close()
        thread.join(SECONDS)
        supervisor.close()
    assert last == Fatal("rank 1: killed by SIGKILL (on host right)", befell=False)


def test_a_rank_that_has_ended_is_told_nothing_and_heard_to_the_end() -> None:
    """And one that hangs holds up who attends to it for a bounded time."""
    to_rank, at_rank = link_pair()
    said: list[Message] = []
    wire: Any = SimpleNamespace(name="the stand-in", send=said.append)
    child: Any = SimpleNamespace(link=SimpleNamespace(receive=lambda timeout: None))
    talk = RankConversation(wire, child, to_rank)
    talk.hear(Start(2))
    at_rank.send(Prepared(1))
    at_rank.close()
    talk.hear(Start(3))
    talk.tell()
    assert said == [Prepared(1)]
    assert talk.filenos() == []
    talk.hear(Start(4))

    to_rank, at_rank = link_pair()
    talk = RankConversation(wire, child, to_rank)
    while to_rank.offer(Start(2)):
        pass
    talk.hear(Start(3))
    at_rank.close()
