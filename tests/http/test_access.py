"""What keys open, what other web pages may set going, and what guessing costs."""

import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trustme

from megainfer.frontend.serving_options import ServingOptions
from megainfer.instruments.seldom import Seldom
from server.http.client import address_of, client_of
from server.http.connections.connection_limits import ConnectionLimits
from server.http.guesses import FORGET_SECONDS, FREE, Guesses
from tests.support.scripted_server import WAIT_SECONDS, RunningServer

KEYS = ServingOptions(api_keys=("a-users-key",), admin_keys=("the-admins-key",))
INSIDE = ("/metrics", "/page/state", "/page/placement", "/page/timeline")


@contextmanager
def running(options: ServingOptions) -> Iterator[httpx.Client]:
    with (
        RunningServer(None, options=options) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        yield http


def status(http: httpx.Client, path: str, key: str = "", **headers: str) -> int:
    given = {"Authorization": f"Bearer {key}"} if key else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.get(path, headers={**given, **named}).status_code


def test_what_tells_of_everybody_is_the_administrators_where_there_is_one() -> None:
    with running(KEYS) as http:
        for path in INSIDE:
            assert status(http, path, "a-users-key") == 403
            assert status(http, path, "nobodys-key") == 401
            assert status(http, path, "the-admins-key") == 200
    with running(replace(KEYS, admin_keys=())) as http:
        assert [status(http, path, "a-users-key") for path in INSIDE] == [200] * 4
    with running(replace(KEYS, public_metrics=True)) as http:
        assert status(http, "/metrics") == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["/debug/trace?seconds=0.01", "/page/timeline", "/page/state"])
def test_another_web_page_sets_nothing_going(path: str, site: str) -> None:
    with running(ServingOptions()) as http:
        assert status(http, path, sec_fetch_site=site) == 403
        assert status(http, path, sec_fetch_site="same-origin") == 200
        assert status(http, path, sec_fetch_site="none") == 200
        assert status(http, path) == 200
        assert status(http, "/v1/models", sec_fetch_site=site) == 200
    allowed = "https://app.example"
    with running(ServingOptions(allowed_origins=(allowed,))) as http:
        assert status(http, path, sec_fetch_site=site, origin=allowed) == 200
        assert status(http, path, sec_fetch_site=site, origin="https://other.example") == 403


def test_guesses_wait_and_are_forgotten() -> None:
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    assert [guesses.note("a") for _ in range(FREE + 1)] == [0.0] * FREE + [1.0]
    assert guesses.note("b") == 0.0
    now[0] = FORGET_SECONDS + 1
    assert guesses.note("a") == 0.0


def test_the_right_key_is_never_kept_waiting(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http.guesses.log.filters", [])  # what others have caused
    with running(KEYS) as http:
        for _ in range(FREE + 1):
            assert status(http, "/v1/models", "wrong") == 401
        assert status(http, "/v1/models", "a-users-key") == 200
    said = [record.getMessage() for record in caplog.records]
    assert sum("wrong keys come from 127.0.0.1" in line for line in said) == 1
    assert not any("wrong-" in line for line in said)


def test_lines_that_clients_cause_are_seldom() -> None:
    now = [0.0]
    seldom = Seldom(10.0, lambda: now[0])

    def told(message: str, *values: object) -> str | None:
        record = logging.LogRecord("x", logging.WARNING, "", 0, message, values, None)
        return record.getMessage() if seldom.filter(record) else None

    assert told("a bad %s", 1) == "a bad 1"
    assert told("a bad %s", 2) is None
    assert told("another") == "another"
    now[0] = 11.0
    assert told("a bad %s", 3) == "a bad 3 (and 1 times more before)"


def test_clients_are_told_apart() -> None:
    assert address_of(("10.0.0.1", 5)) == "10.0.0.1"
    assert address_of(("2001:db8:1:2:3:4:5:6", 5, 0, 0)) == "2001:db8:1:2"
    assert address_of(("::ffff:10.0.0.1", 5, 0, 0)) == "::ffff:10.0.0.1"
    scope = {"client": ("10.0.0.1", 5)}
    assert client_of(scope, None) == "address 10.0.0.1"
    assert client_of(scope, "ab") == "key ab"


# --- connections ---------------------------------------------------------------------------------


def connect(server: RunningServer) -> socket.socket:
    host, _, port = server.url.rpartition("//")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)


def has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_silent_handshakes_are_counted_and_end(tmp_path: Path) -> None:
    """And one address leaves room for others, whom the full server tells so."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    options = ServingOptions(certificate=certificate, private_key=key)
    limits = ConnectionLimits(connections=64, of_address=2, head_seconds=0.5)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with RunningServer(None, options=options, connections=limits) as server:
        url = server.url.replace("http:", "https:")
        silent = [connect(server) for _ in range(2)]
        with httpx.Client(verify=context, trust_env=False) as http:
            answer = http.get(f"{url}/live", timeout=WAIT_SECONDS)
        assert answer.status_code == 503
        assert "2 from your address" in answer.json()["error"]["message"]
        for connection in silent:
            assert has_ended(connection), "the handshake didn't come in time"
            connection.close()
        with httpx.Client(verify=context, trust_env=False) as http:
            assert http.get(f"{url}/live").status_code == 200


def test_far_too_many_connections_are_closed_at_once() -> None:
    limits = ConnectionLimits(connections=300, of_address=1)
    with RunningServer(None, connections=limits) as server:
        opened = [connect(server) for _ in range(1 + 64)]
        with connect(server) as beyond:
            assert has_ended(beyond)
        for connection in opened:
            connection.close()
