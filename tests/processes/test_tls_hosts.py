"""TLS between hosts over real connections: what they say to each other, and on M2N."""

import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import pytest
import trustme

from megainfer.errors import ConfigError, MegaInferError, NodeDied, ProtocolError
from megainfer.hosts import wire as wire_module
from megainfer.hosts.wire import Wire, poll
from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.host import meeting
from megainfer.m2n.roads import Road, Seat
from megainfer.messages.hosts import (
    ForNode,
    FromAttendant,
    LogLines,
    ToAttendant,
    from_attendant_decoder,
    to_attendant_decoder,
)
from megainfer.tls.end import MAYBE, UNSPOKEN, WANTED, TlsEnd
from megainfer.tls.peers import PeerTls, TlsFiles
from megainfer.tls.stream import TlsSocket
from tests.support.dist_node import GEOMETRY, answer, exchange, until
from tests.support.m2n_cluster import KEY, SECONDS, fresh_token
from tests.support.tls import issued

TOKEN = b"a token that is long enough to be one"
SECRET = b"what nobody else may read"
LEASE = 10.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return issued(tmp_path_factory.mktemp("host"), trustme.CA())


@pytest.fixture(scope="module")
def tls(files: TlsFiles) -> PeerTls:
    return PeerTls(files)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> PeerTls:
    """Of another authority."""
    return PeerTls(issued(tmp_path_factory.mktemp("other"), trustme.CA()))


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory, files: TlsFiles) -> PeerTls:
    """It believes who `tls` is, and isn't believed."""
    own = issued(tmp_path_factory.mktemp("trusting"), trustme.CA())
    return PeerTls(TlsFiles(own.certificate, own.private_key, files.authority))


class Talk:
    """Both ends of a connection, whose bytes go through a relay that keeps them."""

    def __init__(self, listens: PeerTls | None, calls: PeerTls | None) -> None:
        (near, self._near), (far, self._far) = _connected(), _connected()
        self.seen = bytearray()
        name = "the other"
        self.caller = Wire(near, TOKEN, from_attendant_decoder, name, True, LEASE, tls=calls)
        self.listener = Wire(far, TOKEN, to_attendant_decoder, name, False, LEASE, tls=listens)
        self._relays = [
            threading.Thread(target=self._relay, args=ends, daemon=True)
            for ends in ((self._near, self._far), (self._far, self._near))
        ]
        for relay in self._relays:
            relay.start()

    def until_heard(self) -> tuple[list[FromAttendant], list[ToAttendant]]:
        """What the caller hears, and the listener: something each."""
        deadline = time.monotonic() + SECONDS
        told: list[FromAttendant] = []
        asked: list[ToAttendant] = []
        while not (told and asked):
            assert time.monotonic() < deadline
            told += self.caller.pump()
            asked += self.listener.pump()
            poll([self.caller, self.listener], 0.05)
        return told, asked

    def ends(self) -> tuple[str, str]:
        """How it ends for the caller and for the listener."""
        said: dict[bool, str] = {}
        deadline = time.monotonic() + SECONDS
        while len(said) < 2:
            assert time.monotonic() < deadline, said
            for calls, wire in ((True, self.caller), (False, self.listener)):
                if calls not in said:
                    try:
                        wire.pump()
                    except MegaInferError as error:
                        said[calls] = str(error)
            poll([], 0.02)
        return said[True], said[False]

    def close(self) -> None:
        self.caller.close()
        self.listener.close()
        for relay in self._relays:
            relay.join(SECONDS)

    def _relay(self, come: socket.socket, go: socket.socket) -> None:
        with suppress(OSError):
            while data := come.recv(1 << 16):
                self.seen += data
                go.sendall(data)
        for each in (come, go):
            with suppress(OSError):  # the other relay was faster
                each.shutdown(socket.SHUT_RDWR)


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname(), timeout=SECONDS)
        return near, server.accept()[0]


@pytest.mark.parametrize("hidden", [True, False])
def test_what_is_said_is_hidden(tls: PeerTls, hidden: bool) -> None:
    used = tls if hidden else None
    with closing(Talk(used, used)) as talk:
        talk.caller.send(ForNode(0, 0, SECRET * 100_000))  # more than sockets hold
        talk.listener.send(LogLines(["all", "is well"]))
        told, asked = talk.until_heard()
        assert told == [LogLines(["all", "is well"])]
        assert asked == [ForNode(0, 0, SECRET * 100_000)]
        assert (SECRET in talk.seen) is not hidden


GOOD, REFUSED = "isn't good by this side's --tls-cafile", "it refuses this side's certificate"


def test_a_caller_of_another_authority_is_sent_away(tls: PeerTls, trusting: PeerTls) -> None:
    with closing(Talk(tls, trusting)) as talk:
        caller, listener = talk.ends()
    assert REFUSED in caller
    assert GOOD in listener


def test_a_listener_of_another_authority_is_left(tls: PeerTls, other: PeerTls) -> None:
    with closing(Talk(other, tls)) as talk:
        caller, listener = talk.ends()
    assert GOOD in caller
    assert REFUSED in listener


def test_a_caller_without_a_certificate_is_sent_away(tls: PeerTls, files: TlsFiles) -> None:
    with closing(Talk(tls, cast(PeerTls, Bare(files)))) as talk:
        caller, listener = talk.ends()
    assert "this side has shown none" in caller
    assert "it has shown no certificate" in listener


def test_tls_to_a_plain_port_is_named(tls: PeerTls) -> None:
    with closing(Talk(None, tls)) as talk:
        assert talk.ends() == (f"the other: {UNSPOKEN}", f"the other: {WANTED}")


def test_a_plain_peer_at_a_tls_port_is_sent_away_in_time(
    tls: PeerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other to begin."""
    monkeypatch.setattr(wire_module, "HANDSHAKE_SECONDS", 0.3)
    with closing(Talk(tls, None)) as talk:
        caller, listener = talk.ends()
    assert caller == listener == f"the other has not proved itself within 0.3 s; {MAYBE}"


def test_a_plain_peer_that_begins_is_named(tls: PeerTls) -> None:
    with closing(Talk(tls, None)) as talk:
        talk._near.sendall(b"GET / HTTP/1.1")  # to the caller
        talk._far.sendall(b"GET / HTTP/1.1")
        caller, listener = talk.ends()
    assert UNSPOKEN in listener
    assert "which no MegaInfer of a host does" in caller


class Bare:
    """A `PeerTls` that believes the authority and has no certificate."""

    def __init__(self, files: TlsFiles) -> None:
        self._context = ssl.create_default_context(cafile=files.authority)
        self._context.check_hostname = False

    def end(self, calls: bool) -> TlsEnd:
        return TlsEnd(self._context, calls)


# --- files ----------------------------------------------------------------------------------------


def test_all_three_files_are_needed(files: TlsFiles) -> None:
    assert TlsFiles.chosen(None, None, None) is None
    with pytest.raises(ConfigError, match="give --tls-keyfile and --tls-cafile as well"):
        TlsFiles.chosen(files.certificate, None, None)


def test_files_that_cannot_be_used_are_named(files: TlsFiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tls-certfile .* with --tls-keyfile .*authority"):
        PeerTls(TlsFiles(files.certificate, files.authority, files.authority))
    with pytest.raises(ConfigError, match=r"--tls-cafile .*nowhere can't be used"):
        PeerTls(TlsFiles(files.certificate, files.private_key, tmp_path / "nowhere"))


# --- M2N ------------------------------------------------------------------------------------------


def road(token: str, files: TlsFiles | None) -> Road:
    return Road("dist", token, key=KEY, tls=files)


@pytest.fixture
def token() -> str:
    return fresh_token()


@pytest.fixture
def expert(token: str, files: TlsFiles) -> Iterator[DistExpertPort]:
    port = DistExpertPort(road(token, files), Seat(GEOMETRY, 0))
    yield port
    port.close()


def meet(port: DistAttentionPort, seconds: float = SECONDS) -> None:
    port.visit((0, 0), time.monotonic() + seconds)


def await_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + SECONDS
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)  # of another thread's log nobody tells


def test_messages_go_both_ways(token: str, files: TlsFiles, expert: DistExpertPort) -> None:
    """Bells and pulses at once, of both threads of either end."""
    with closing(DistAttentionPort(road(token, files), Seat(GEOMETRY, 0))) as attention:
        meet(attention)
        attention.set_epoch(1, [0])
        expert.set_epoch(1, [0])
        (to_expert,) = attention._site._links
        assert isinstance(to_expert.connection, TlsSocket)
        served = threading.Thread(target=lambda: [answer(expert) for _ in range(20)])
        served.start()
        for number in range(20):
            assert to_expert.pulse()
            exchange(attention, number % GEOMETRY.micro_batches, 1 + number % 3)
        served.join(SECONDS)
    until(expert, lambda: expert.lost_peers() == {0})


def test_m2n_of_another_authority_is_refused_and_logged(
    token: str, other: PeerTls, expert: DistExpertPort, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        closing(DistAttentionPort(road(token, other.files), Seat(GEOMETRY, 0))) as attention,
        pytest.raises(ProtocolError, match=f"expert node 0: .*{GOOD}"),
    ):
        meet(attention)
    await_log(caplog, f"expert node 0 let nobody in: a node that connects: {REFUSED}")


def test_m2n_without_tls_is_refused_in_time(
    token: str,
    expert: DistExpertPort,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting, "HANDSHAKE_SECONDS", 0.3)
    with (
        closing(DistAttentionPort(road(token, None), Seat(GEOMETRY, 0))) as attention,
        pytest.raises(NodeDied, match="expert node 0 closed the connection"),
    ):
        meet(attention)
    await_log(caplog, "expert node 0 let nobody in: a node that connects did not answer")


def test_m2n_with_tls_at_a_plain_port_is_named(
    token: str, files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        closing(DistExpertPort(road(token, None), Seat(GEOMETRY, 0))),
        closing(DistAttentionPort(road(token, files), Seat(GEOMETRY, 0))) as attention,
    ):
        with pytest.raises(ProtocolError, match=re.escape(f"expert node 0: {UNSPOKEN}")):
            meet(attention)
        await_log(caplog, f"a node that connects: {WANTED}")
