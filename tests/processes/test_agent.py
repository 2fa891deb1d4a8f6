"""For whom an agent forks a process, and what becomes of one that it forked before."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from megainfer.agent import agent as agent_module
from megainfer.agent.agent import Agent, AgentWish
from megainfer.agent.attendant import Ground
from megainfer.hosts.listening import Address
from megainfer.hosts.wire import Wire
from megainfer.messages.hosts import FromAttendant, StartNode, from_attendant_decoder
from megainfer.messages.message import Role
from megainfer.messages.weights import OF_FOLDER

TOKEN, SECONDS = b"a token that is long enough to be one", 10.0
NOWHERE = Address("127.0.0.1", 1)
Call = Callable[[bytes], Wire[FromAttendant]]


class Forked:
    """What stands for attendants: processes that do nothing."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self._kept: list[subprocess.Popen[bytes]] = []  # else the next Popen would reap them

    def fork(self) -> int:
        self._kept.append(subprocess.Popen(["sleep", "60"]))
        self.pids.append(self._kept[-1].pid)
        return self.pids[-1]

    def living(self) -> list[int]:
        return [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Forked:
    forked = Forked()
    monkeypatch.setattr(agent_module, "fork_process", forked.fork)
    return forked


@pytest.fixture
def agent(forked: Forked) -> Iterator[Agent]:
    ground = Ground(TOKEN, "127.0.0.1", None)
    agent = Agent(AgentWish(NOWHERE, "left", 0, 60.0, ground), lambda text: None)
    yield agent
    agent._end()
    assert forked.living() == []


@pytest.fixture
def call(agent: Agent) -> Iterator[Call]:
    wires: list[Wire[FromAttendant]] = []

    def called(token: bytes) -> Wire[FromAttendant]:
        connection = socket.create_connection(agent._strangers.address, timeout=SECONDS)
        wires.append(Wire(connection, token, from_attendant_decoder, "the agent", True, SECONDS))
        return wires[-1]

    yield called
    for wire in wires:
        wire.close()


def start(node: int, incarnation: int = 0) -> StartNode:
    return StartNode(Role.EXPERT, node, incarnation, b"", False, None, OF_FOLDER, 5.0)


def ask(agent: Agent, wire: Wire[FromAttendant], forked: Forked, node: int) -> int:
    """Who was forked for it."""
    before, deadline = len(forked.pids), monotonic() + SECONDS
    wire.send(start(node))
    while len(forked.pids) == before:
        assert monotonic() < deadline
        agent._turn()
        if wire.fileno() >= 0 and len(forked.pids) == before:
            wire.pump()
    return forked.pids[-1]


def test_nothing_is_forked_for_who_has_not_proved_itself(
    agent: Agent, forked: Forked, call: Call
) -> None:
    silent = [socket.create_connection(agent._strangers.address) for _ in range(8)]
    call(b"another token, of somebody else, as long").send(start(0))
    for _ in range(5):
        agent._turn()
    assert forked.pids == []
    assert ask(agent, call(TOKEN), forked, 0) in forked.living()
    for connection in silent:
        connection.close()


def test_a_node_that_is_wanted_anew_ends_what_it_was_before(
    agent: Agent, forked: Forked, call: Call
) -> None:
    """Its stand-in was lost there, of which its attendant here may hear later."""
    first, other = (ask(agent, call(TOKEN), forked, node) for node in (0, 1))
    second = ask(agent, call(TOKEN), forked, 0)
    deadline = monotonic() + SECONDS
    while first in forked.living():
        assert monotonic() < deadline
        agent._turn()
    assert forked.living() == [other, second]
