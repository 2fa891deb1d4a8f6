"""What `megainfer doctor` finds out about a link, between two ends on this machine."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread, current_thread
from time import time

import pytest

from megainfer.agent import probing
from megainfer.agent.probing import probed, serve_probing
from megainfer.errors import MegaInferError
from megainfer.hosts.doctor import problem_of
from megainfer.hosts.listening import Address, listen
from megainfer.hosts.wire import Wire, await_messages
from megainfer.messages.hosts import LinkProbed, ProbeLink, to_attendant_decoder

TOKEN = b"a token that is long enough to be one"
SECONDS = 10.0


@pytest.fixture
def there() -> Iterator[ProbeLink]:
    """The agent of another host, which lets one in."""
    with listen(Address("127.0.0.1", 0), "--host") as listening:
        listening.settimeout(SECONDS)
        answering = Thread(target=_answer, args=(listening,))
        answering.start()
        yield ProbeLink("right", *listening.getsockname()[:2])
        answering.join(SECONDS)
        assert not answering.is_alive()


def _answer(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    wire = Wire(connection, TOKEN, to_attendant_decoder, "left", False, SECONDS)
    with suppress(MegaInferError):  # a stranger: who measures is told
        serve_probing(wire, await_messages(wire, SECONDS), TOKEN, "127.0.0.1")
    wire.close()


def test_a_link_has_a_round_trip_a_bandwidth_and_two_clocks(there: ProbeLink) -> None:
    link = probed(there, TOKEN)
    assert link.error is None
    assert 0 < link.round_trip_seconds < 1
    assert link.bytes_per_second > 1e6
    assert abs(link.ahead_seconds) < 0.5  # it is one clock


def test_a_clock_that_is_ahead_is_told(there: ProbeLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the thread that answers."""
    here = current_thread()
    monkeypatch.setattr(probing, "time", lambda: time() + 3.0 * (current_thread() is not here))
    link = probed(there, TOKEN)
    assert 2.5 < link.ahead_seconds < 3.5
    assert "clocks differ by" in (problem_of(link) or "")


def test_a_firewall_between_free_ports_is_named(
    there: ProbeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(to: tuple[str, int], ticket: bytes) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(probing, "_send_bytes", refused)
    monkeypatch.setattr(probing, "ANSWER_SECONDS", 0.5)
    problem = problem_of(probed(there, TOKEN))
    assert problem is not None
    assert "a firewall has to let them through" in problem


def test_who_has_another_token_measures_nothing(there: ProbeLink) -> None:
    link = probed(there, b"a token of somebody else, as long")
    assert "it refuses this token" in (link.error or "")


def test_an_agent_that_is_not_there_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        link = probed(ProbeLink("right", *unused.getsockname()), TOKEN)
    assert "its agent can't be reached at 127.0.0.1:" in (link.error or "")


def test_hosts_that_are_far_apart_are_told() -> None:
    assert "belong side by side" in (problem_of(LinkProbed(0.02, 1e8)) or "")
    assert problem_of(LinkProbed(0.0002, 1e9)) is None
