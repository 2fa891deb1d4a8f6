"""Connections that would only cost: clients that don't read, don't speak, or are too many."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from http.client import HTTPConnection, HTTPResponse
from time import monotonic

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from megainfer.messages.requests import Abort, FinishReason, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.http.connections.bounded_connection import BoundedConnection
from server.http.connections.connection_limits import READ_BYTES, ConnectionLimits, raise_file_limit
from tests.support.scripted_server import WAIT_SECONDS, RunningServer, byte_level_backend, endless

BACKEND = byte_level_backend()
BACKEND.add_tokens(["y" * 100_000])
TOKENIZER = Tokenizer(FastBackend(BACKEND), {})
TOKEN = TOKENIZER.encode("x")[0]
LONG_TOKEN = BACKEND.token_to_id("y" * 100_000)
SOON = 0.05


def address(server: RunningServer) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(address(server), timeout=WAIT_SECONDS)


def post(**body: object) -> bytes:
    text = json.dumps({"prompt": "x", **body})
    return (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    ).encode()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_is_given_up(stream: bool) -> None:
    async def flooding(submit: Submit) -> AsyncIterator[TokenEvent]:
        for _ in range(200):  # 20 MB, more than sockets buffer
            yield TokenEvent(submit.request_id, [LONG_TOKEN])
        if not stream:
            yield TokenEvent(submit.request_id, [TOKEN], FinishReason.LENGTH)

    limits = ConnectionLimits(read_seconds=SOON)
    with RunningServer(TOKENIZER, connections=limits) as server, connect(server) as connection:
        server.node.script = flooding
        connection.sendall(post(stream=stream, max_tokens=250))
        submitted = server.node.expect(Submit)
        if stream:
            assert server.node.expect(Abort).request_id == submitted.request_id
        wait_until_alone(server)


def wait_until_running(server: RunningServer) -> None:
    """Until a request beside the one that asks is being answered, if only its body is read."""
    deadline = monotonic() + WAIT_SECONDS
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        while not http.get("/load").json()["server_load"]:
            assert monotonic() < deadline, "it has never begun"


def wait_until_alone(server: RunningServer) -> None:
    """Until no request is being answered, and no sequence is in flight."""
    deadline = monotonic() + WAIT_SECONDS
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        while http.get("/load").json()["server_load"] or server.engine.outstanding:
            assert monotonic() < deadline, "it is still being answered"


@pytest.mark.parametrize(
    "said", [b"", b"POST /v1/compl", b"GET /live HTTP/1.1\r\nHost: localhost\r\n"]
)
def test_headers_that_do_not_come_are_given_up(said: bytes) -> None:
    limits = ConnectionLimits(head_seconds=SOON)
    with RunningServer(TOKENIZER, connections=limits) as server, connect(server) as connection:
        connection.sendall(said)
        assert connection.recv(100) == b""


@pytest.mark.parametrize(("method", "answers"), [(b"POST", 1), (b"HEAD", 0)])
def test_what_is_no_http_behind_a_head_is_told_once(
    caplog: pytest.LogCaptureFixture, method: bytes, answers: int
) -> None:
    """And the answer to the head, which needs no body, isn't given as well."""
    head = method + (
        b" /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    with RunningServer(TOKENIZER) as server, connect(server) as connection:
        connection.sendall(head + b"zz\r\n")
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answer.count(b"HTTP/1.1 400 ") == answer.count(b"HTTP/1.1") == answers
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_who_hangs_up_before_the_body_is_there_leaves_nothing_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n"
    )
    with RunningServer(TOKENIZER) as server:
        for said in (head, head + b'{"prompt": [1'):
            with connect(server) as connection:
                connection.sendall(said)
                wait_until_running(server)
            wait_until_alone(server)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_nor_do_they_have_longer_on_a_connection_that_was_used_before() -> None:
    limits = ConnectionLimits(head_seconds=SOON)
    with RunningServer(TOKENIZER, connections=limits) as server, connect(server) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
        connection.sendall(b"GET /live HT")
        assert connection.recv(100) == b""


def test_what_is_being_answered_may_take_longer() -> None:
    go_on = asyncio.Event()

    async def slowly(submit: Submit) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(submit.request_id, [TOKEN])
        await go_on.wait()
        yield TokenEvent(submit.request_id, [TOKEN], FinishReason.LENGTH)

    limits = ConnectionLimits(head_seconds=SOON)
    with RunningServer(TOKENIZER, connections=limits) as server, connect(server) as connection:
        server.node.script = slowly
        connection.sendall(post(max_tokens=2))
        server.node.expect(Submit)
        with connect(server) as silent:
            assert silent.recv(100) == b""  # so that much time has passed
        server.call(go_on.set)
        answer = HTTPResponse(connection)
        answer.begin()
        assert json.loads(answer.read())["choices"][0]["text"] == "xx"


def test_one_connection_too_many_is_told_so_until_another_has_ended() -> None:
    with RunningServer(TOKENIZER, connections=ConnectionLimits(connections=2)) as server:
        first, second = (HTTPConnection(*address(server), timeout=WAIT_SECONDS) for _ in range(2))
        for connection in (first, second):
            connection.request("GET", "/live")
            assert connection.getresponse().read() == b'{"status":"ok"}'
        refused = httpx.get(f"{server.url}/live", trust_env=False, headers={"X-Request-Id": "mine"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert "2 connections are open" in refused.json()["error"]["message"]
        wanted = {"Connection": "close", "Retry-After": "1", "X-Request-Id": "mine"}
        assert wanted.items() <= {name: refused.headers[name] for name in wanted}.items()
        first.close()
        deadline = monotonic() + WAIT_SECONDS
        while httpx.get(f"{server.url}/live", trust_env=False).status_code != 200:
            assert monotonic() < deadline
        second.close()


class _Transport(asyncio.Transport):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__({"socket": connection})
        self.unsent = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high, low) == (1, 0)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


def new_protocol() -> BoundedConnection:
    limits = ConnectionLimits()
    return BoundedConnection(
        uvicorn.Config(endless, log_config=None),  # type: ignore[arg-type]  # never called
        ServerState(),
        {},
        limits=limits,
    )


def test_whoever_reads_slowly_but_reads_is_waited_for() -> None:
    async def work(connection: socket.socket) -> None:
        protocol, transport = new_protocol(), _Transport(connection)
        protocol.connection_made(transport)
        transport.unsent = 10 * READ_BYTES
        protocol.pause_writing()
        protocol._check_reading(11 * READ_BYTES)
        assert not transport.aborted
        protocol._check_reading(11 * READ_BYTES - 1)
        assert transport.aborted
        protocol.connection_lost(None)

    with socket.socket() as connection:
        asyncio.run(work(connection))


def test_an_answer_does_not_wait_for_its_headers_to_be_acknowledged() -> None:
    async def work(connection: socket.socket) -> None:
        protocol = new_protocol()
        protocol.connection_made(_Transport(connection))
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        protocol.connection_lost(None)

    with socket.socket() as connection:
        assert not connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        asyncio.run(work(connection))


def test_files_are_enough_for_the_connections_that_are_taken() -> None:
    assert 1 <= raise_file_limit().connections <= ConnectionLimits().connections
