"""Who may join an instance as a host, over real connections of this machine."""

import logging
import socket
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic

import msgspec
import pytest

import megainfer
from megainfer.errors import ConfigError, MegaInferError, NodeDied, ProtocolError
from megainfer.hosts import strangers
from megainfer.hosts import wire as wire_module
from megainfer.hosts.listening import Address, listen
from megainfer.hosts.reception import Reception
from megainfer.hosts.wire import Wire, poll
from megainfer.launch.machine import Machine
from megainfer.messages.hosts import (
    Dismissed,
    Join,
    Joined,
    Refused,
    ToAgent,
    to_agent_decoder,
)

TOKEN, OTHER = b"a token that is long enough to be one", b"a token of somebody else, as long"
LEASE, SECONDS = 2.0, 10.0
LOOPBACK = Address("127.0.0.1", 0)


@pytest.fixture
def reception() -> Iterator[Reception]:
    reception = Reception.open(LOOPBACK, TOKEN, LEASE)
    yield reception
    reception.close()


@pytest.fixture
def callers() -> Iterator[list[Wire[ToAgent]]]:
    wires: list[Wire[ToAgent]] = []
    yield wires
    for wire in wires:
        wire.close()


def call(reception: Reception, callers: list[Wire[ToAgent]], token: bytes = TOKEN) -> Wire[ToAgent]:
    connection = socket.create_connection(reception.address, timeout=SECONDS)
    callers.append(Wire(connection, token, to_agent_decoder, "the supervisor", True, LEASE))
    return callers[-1]


def join(wire: Wire[ToAgent], name: str, version: str = megainfer.__version__) -> None:
    machine = msgspec.msgpack.encode(Machine((0, 1), 2**30, 2**30, False))
    wire.send(Join(name, version, "127.0.0.1", 7301, machine))


def answer(reception: Reception, wire: Wire[ToAgent]) -> ToAgent:
    """What an agent is told, while the supervisor does its turns."""
    deadline = monotonic() + SECONDS
    while monotonic() < deadline:
        reception.attend()
        if said := wire.pump():
            return said[0]
        poll([wire], 0.05)
    raise AssertionError("no answer")


def until(reception: Reception, holds: Callable[[], bool]) -> None:
    deadline = monotonic() + SECONDS
    while not holds():
        assert monotonic() < deadline
        reception.attend()
        poll([], 0.02)


def test_who_has_the_token_is_a_host_until_the_instance_ends(
    reception: Reception, callers: list[Wire[ToAgent]]
) -> None:
    wire = call(reception, callers)
    join(wire, "left")
    assert answer(reception, wire) == Joined()
    (host,) = reception.gather(1, SECONDS, lambda text: None)
    assert (host.name, host.machine.cores) == ("left", (0, 1))
    assert reception.is_there("left")
    assert reception.listens_at("left") == ("127.0.0.1", 7301)
    reception.dismiss()
    poll([wire], SECONDS)
    assert Dismissed() in wire.pump()


def test_who_has_another_token_is_refused_logged_and_told(
    reception: Reception, callers: list[Wire[ToAgent]], caplog: pytest.LogCaptureFixture
) -> None:
    wire = call(reception, callers, OTHER)
    with pytest.raises(ProtocolError, match="it refuses this token"):
        answer(reception, wire)
    assert "nobody let in: an agent at 127.0.0.1" in caplog.text
    assert "has not proved that it has this token" in caplog.text
    with pytest.raises(NodeDied, match=r"0 of 1 agents joined 127\.0\.0\.1:\d+ within 0 s"):
        reception.gather(1, 0.0, lambda text: None)


def test_another_version_is_named(reception: Reception, callers: list[Wire[ToAgent]]) -> None:
    wire = call(reception, callers)
    join(wire, "left", version="9.9")
    said = answer(reception, wire)
    assert said == Refused(f"it runs MegaInfer 9.9, and the supervisor {megainfer.__version__}")
    assert not reception.is_there("left")


def test_a_name_that_is_taken_is_refused_until_its_owner_is_gone(
    reception: Reception, callers: list[Wire[ToAgent]], caplog: pytest.LogCaptureFixture
) -> None:
    first = call(reception, callers)
    join(first, "left")
    assert answer(reception, first) == Joined()
    second = call(reception, callers)
    join(second, "left")
    assert answer(reception, second) == Refused(
        "there is a host left already; call this one otherwise by --name"
    )
    first.close()
    until(reception, lambda: not reception.is_there("left"))
    assert "host left is lost" in caplog.text
    third = call(reception, callers)
    join(third, "left")
    assert answer(reception, third) == Joined()
    assert "host left is back" in caplog.text


def test_one_that_falls_silent_is_lost_after_its_lease(
    reception: Reception, callers: list[Wire[ToAgent]], caplog: pytest.LogCaptureFixture
) -> None:
    wire = call(reception, callers)
    join(wire, "left")
    assert answer(reception, wire) == Joined()
    began = monotonic()  # it is pumped no more
    until(reception, lambda: "host left is lost" in caplog.text)
    assert monotonic() - began > LEASE - 0.5
    assert "silent" in caplog.text


def test_strangers_who_say_nothing_are_sent_away(
    reception: Reception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "HANDSHAKE_SECONDS", 0.2)
    with socket.create_connection(reception.address, timeout=SECONDS):
        until(reception, lambda: "has not proved itself within 0.2 s" in caplog.text)
    assert len(reception.filenos()) == 1


def test_a_flood_of_strangers_holds_nothing_up(
    reception: Reception, callers: list[Wire[ToAgent]]
) -> None:
    """One turn hears so many, and who has the token comes in among them."""
    flood = [socket.create_connection(reception.address, timeout=SECONDS) for _ in range(100)]
    try:
        reception.attend()
        assert len(reception.filenos()) == 1 + strangers.AT_ONCE
        for _ in range(10):
            reception.attend()
            assert len(reception.filenos()) <= 1 + strangers.MOST
        wire = call(reception, callers)
        join(wire, "left")
        assert answer(reception, wire) == Joined()
    finally:
        for connection in flood:
            connection.close()


@pytest.mark.parametrize("name", ["", "left\nWARNING all is well", "x" * 65, "\x1b[2J", "[red]"])
def test_a_name_that_would_spoil_the_log_is_refused(
    reception: Reception, callers: list[Wire[ToAgent]], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    wire = call(reception, callers)
    join(wire, name)
    said = answer(reception, wire)
    assert isinstance(said, Refused)
    assert "--name is of letters, digits and ._-" in said.reason
    assert "\nWARNING" not in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    ("lease", "unanswered", "expected"), [(60, inf, 60), (60, 5, 5), (3, 5, 3)]
)
def test_the_kernel_is_as_patient_as_the_lease(
    lease: float, unanswered: float, expected: float
) -> None:
    """Else a network that is gone for less than the lease would end nodes all the same."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = socket.create_connection(listening.getsockname())
        wire = Wire(connection, TOKEN, to_agent_decoder, "x", True, lease, unanswered)
        milliseconds = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert milliseconds == expected * 1000
        wire.close()


def test_a_host_that_stays_away_ends_a_start(
    callers: list[Wire[ToAgent]], caplog: pytest.LogCaptureFixture
) -> None:
    reception = Reception.open(LOOPBACK, TOKEN, LEASE, patience=0.1)
    wire = call(reception, callers)
    join(wire, "left")
    assert answer(reception, wire) == Joined()
    reception.check_back("left")
    wire.close()
    until(reception, lambda: "host left is lost" in caplog.text)
    poll([], 0.2)
    with pytest.raises(NodeDied, match=r"host left is lost \(.*\) and not back within 0.1 s"):
        reception.check_back("left")
    again = call(reception, callers)
    join(again, "left")
    assert answer(reception, again) == Joined()
    reception.check_back("left")
    reception.close()


def test_a_machine_that_can_not_be_read_is_refused(
    reception: Reception, callers: list[Wire[ToAgent]]
) -> None:
    wire = call(reception, callers)
    wire.send(Join("left", megainfer.__version__, "127.0.0.1", 7301, b"\x80"))
    said = answer(reception, wire)
    assert isinstance(said, Refused)
    assert "its machine can't be read" in said.reason


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "everywhere", "192.0.2.1"])
def test_nothing_listens_at_all_addresses_or_at_none(host: str) -> None:
    with pytest.raises(ConfigError, match="--listen-agents"):
        listen(Address(host, 0), "--listen-agents")


def test_a_message_that_nobody_reads_is_no_endless_wait(
    reception: Reception, callers: list[Wire[ToAgent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "MOST_WAITING_BYTES", 2**20)
    wire = call(reception, callers)
    join(wire, "left")
    assert answer(reception, wire) == Joined()

    def flood() -> None:
        for _ in range(64):
            wire.send(Join("x", "y", "z", 1, bytes(2**20)))

    with pytest.raises(MegaInferError, match="bytes unread"):
        flood()


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(strangers.log, "filters", [])
