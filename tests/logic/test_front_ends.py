"""An attention node's front ends: whose request is whose, and what becomes of it when one goes."""

import itertools
from collections.abc import Iterator

import pytest
import zmq

from megainfer.attention_node import front_ends as front_ends_module
from megainfer.attention_node.front_ends import LOOK_SECONDS, LOST_SECONDS, FrontEnds
from megainfer.errors import NodeDied
from megainfer.frontend.node_socket import new_endpoint
from megainfer.messages.message import encode
from megainfer.messages.requests import (
    Abort,
    FinishReason,
    FromNode,
    NodeReady,
    RequestFailed,
    Reset,
    Submit,
    TokenEvent,
    Tokens,
    ToNode,
    from_node_decoder,
    node_identity,
)
from megainfer.messages.to_child import FrontEndDown, FrontEndUp
from tests.support.scheduler_engine import submit

WAIT_MS = 10_000
READY = NodeReady(node=3, max_model_len=64, max_num_seqs=8, incarnation=2)


class FrontEnd:
    """One that listens."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(endpoint)

    def say(self, message: ToNode | bytes) -> None:
        data = message if isinstance(message, bytes) else encode(message)
        self.socket.send_multipart([node_identity(3, 2), data])

    def hear(self) -> FromNode:
        assert self.socket.poll(WAIT_MS), "it heard nothing"
        identity, data = self.socket.recv_multipart()
        assert identity == node_identity(3, 2)
        return from_node_decoder.decode(data)


class Hall:
    """Two front ends, and a node that has met both."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.endpoints = {at: new_endpoint() for at in itertools.product(range(2), range(2))}
        self.all = [FrontEnd(self.context, self.endpoints[server, 0]) for server in range(2)]
        self.node = FrontEnds(lambda *at: self.endpoints[at], READY)
        for server, front_end in enumerate(self.all):
            self.node.hear(FrontEndUp(server, 0))
            assert front_end.hear() == READY

    def take(self, count: int) -> list[ToNode]:
        """The next so many messages that the node takes."""
        taken: list[ToNode] = []
        poller = zmq.Poller()
        for fd in self.node.filenos():
            poller.register(fd, zmq.POLLIN)
        while len(taken) < count:
            if not self.node.pending():
                assert poller.poll(WAIT_MS), f"only {taken} came"
            taken += self.node.receive()
        return taken


@pytest.fixture
def hall() -> Iterator[Hall]:
    hall = Hall()
    yield hall
    hall.node.close()
    hall.context.destroy(linger=0)


def named(name: str) -> Submit:
    return submit(name, [1, 2])


def test_each_hears_of_its_own_requests(hall: Hall) -> None:
    for server, front_end in enumerate(hall.all):
        front_end.say(named(f"of-{server}"))
    assert {m.request_id for m in hall.take(2) if isinstance(m, Submit)} == {"of-0", "of-1"}
    last = TokenEvent("of-0", [7], FinishReason.STOP)
    hall.node.emit(Tokens(3, [TokenEvent("of-1", [5]), last, TokenEvent("nobodys", [6])]))
    assert hall.all[0].hear() == Tokens(3, [last])
    assert hall.all[1].hear() == Tokens(3, [TokenEvent("of-1", [5])])
    hall.node.emit(RequestFailed(3, "of-0", "it has ended already"))
    hall.node.emit(RequestFailed(3, "of-1", "broken"))
    assert hall.all[1].hear() == RequestFailed(3, "of-1", "broken")
    assert not hall.all[0].socket.poll(0)
    assert not hall.node._owners


def test_none_can_end_or_take_over_anothers(hall: Hall) -> None:
    hall.all[0].say(named("a"))
    hall.take(1)
    hall.all[1].say(Abort("a"))
    hall.all[1].say(named("a"))
    hall.all[1].say(Reset())
    assert hall.take(1) == [Reset()]
    assert "another front end has a request 'a'" in str(hall.all[1].hear())
    hall.all[0].say(Abort("a"))
    assert hall.take(1) == [Abort("a")]


def test_the_requests_of_one_that_is_gone_are_aborted(hall: Hall) -> None:
    for name in ("a", "b"):
        hall.all[0].say(named(name))
    hall.all[1].say(named("c"))
    hall.take(3)
    hall.node.hear(FrontEndDown(0, 0))
    assert hall.node.pending()
    assert hall.take(2) == [Abort("a"), Abort("b")]
    hall.node.emit(Tokens(3, [TokenEvent("a", [], FinishReason.ABORT), TokenEvent("c", [4])]))
    assert hall.all[1].hear() == Tokens(3, [TokenEvent("c", [4])])
    assert not hall.all[0].socket.poll(0)


def test_one_that_comes_back_is_another(hall: Hall) -> None:
    hall.all[0].say(named("a"))
    hall.take(1)
    again = FrontEnd(hall.context, hall.endpoints[0, 1])
    hall.node.hear(FrontEndUp(0, 1))  # before anybody says that the last one is gone
    assert again.hear() == READY
    assert hall.take(1) == [Abort("a")]
    hall.node.hear(FrontEndDown(0, 0))
    hall.node.hear(FrontEndUp(0, 0))
    again.say(named("a"))
    assert hall.take(1) == [named("a")]
    hall.node.emit(Tokens(3, [TokenEvent("a", [4])]))
    assert again.hear() == Tokens(3, [TokenEvent("a", [4])])


def test_one_that_talks_nonsense_harms_only_itself(hall: Hall) -> None:
    hall.all[0].say(named("a"))
    hall.all[1].say(named("b"))
    hall.take(2)
    hall.all[0].say(b"\x80")
    assert hall.take(1) == [Abort("a")]
    hall.node.emit(Tokens(3, [TokenEvent("b", [4])]))
    assert hall.all[1].hear() == Tokens(3, [TokenEvent("b", [4])])


def test_one_that_can_not_be_reached_is_tried_again_until_it_is_gone(hall: Hall) -> None:
    hall.node.hear(FrontEndUp(1, 1))
    assert list(hall.node._front_ends) == [0]
    late = FrontEnd(hall.context, hall.endpoints[1, 1])
    hall.node._next_look = 0.0
    assert list(hall.node.receive()) == []
    assert late.hear() == READY
    hall.endpoints[1, 2] = new_endpoint()
    hall.node.hear(FrontEndUp(1, 2))
    hall.node.hear(FrontEndDown(1, 1))
    assert hall.node._missed == {1: 2}
    hall.node.hear(FrontEndDown(1, 2))
    assert hall.node._missed == {}


def test_a_lost_connection_to_one_that_lives_ends_the_node(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(front_ends_module, "monotonic", lambda: now[0])
    for front_end in hall.all:
        front_end.socket.close(linger=0)
    for server in range(2):
        assert hall.node._front_ends[server].link._events.poll(WAIT_MS)
    assert list(hall.node.receive()) == []
    hall.node.hear(FrontEndDown(0, 0))  # this one has died
    now[0] += LOST_SECONDS
    assert list(hall.node.receive()) == []
    now[0] += LOOK_SECONDS
    with pytest.raises(NodeDied, match="lost its connection to front end 1"):
        list(hall.node.receive())
