"""Clients that hang up, nodes that die, and the server's own end."""

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPResponse

import httpx
import openai
import pytest

from megainfer.messages.requests import Abort, FinishReason, Submit, TokenEvent, Tokens
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from tests.support.scripted_server import (
    WAIT_SECONDS,
    RunningServer,
    byte_level_backend,
    endless,
    raw_request,
    silent,
)

TOKENIZER = Tokenizer(FastBackend(byte_level_backend()), {})
TOKEN = TOKENIZER.encode("x")[0]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER) as server:
        yield server


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    timeout = httpx.Timeout(20)
    with httpx.Client(base_url=server.url, timeout=timeout, trust_env=False) as client:
        yield client


def wait_for_headers(connection: socket.socket) -> None:
    """Until the answer has begun, and well; the body may be on its way or not."""
    answer = HTTPResponse(connection)
    answer.begin()
    assert answer.status == 200


@pytest.mark.parametrize("stream", ["true", "false"])
@pytest.mark.parametrize("script", [silent, endless(TOKEN)], ids=["before", "after"])
def test_hanging_up_aborts_every_sequence(
    server: RunningServer, stream: str, script: object
) -> None:
    """Streamed or not, before the first token or after it."""
    server.node.script = script
    body = f'{{"prompt": "x", "n": 2, "stream": {stream}, "max_tokens": 99}}'
    connection = raw_request(server, body)
    submitted = {server.node.expect(Submit).request_id for _ in range(2)}
    if script is not silent and stream == "true":
        wait_for_headers(connection)
    connection.close()
    assert {server.node.expect(Abort).request_id for _ in range(2)} == submitted
    assert server.engine.outstanding == 0


def test_nothing_is_written_to_a_connection_that_is_gone(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of an answer that is there all at once, as after a while of much to do. asyncio warns
    of writes to a lost connection, from the fifth on."""
    go_on = asyncio.Event()

    async def in_a_burst(submit: Submit) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(submit.request_id, [TOKEN])
        await go_on.wait()
        events = [TokenEvent(submit.request_id, [TOKEN]) for _ in range(submit.max_tokens - 2)]
        await server.node.say(Tokens(node=0, events=events))
        yield TokenEvent(submit.request_id, [TOKEN], FinishReason.LENGTH)

    server.node.script = in_a_burst
    body = '{"prompt": "x", "stream": true, "max_tokens": 99}'
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            connection = raw_request(server, body)
            wait_for_headers(connection)
            reset(connection)
            server.call(go_on.set)
            server.node.expect(Submit)
        with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as http:
            http.post("/v1/completions", json={"prompt": "x"})
    # Of this server: exporters of other tests' spans go on complaining for a while.
    own = [record for record in caplog.records if not record.name.startswith("opentelemetry")]
    assert own == []


def reset(connection: socket.socket) -> None:
    """Close so that the other side's next write fails."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_closing_the_openai_clients_stream_aborts(server: RunningServer) -> None:
    server.node.script = endless(TOKEN)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model="tiny", prompt="x", stream=True)
        assert next(iter(stream)).choices[0].text == "x"
        stream.close()
        assert server.node.expect(Abort).request_id == server.node._playing.popitem()[0]


def test_many_clients_at_once_with_the_asynchronous_client(server: RunningServer) -> None:
    async def echo(submit: Submit) -> AsyncIterator[TokenEvent]:
        for token in submit.prompt[:-1]:
            yield TokenEvent(submit.request_id, [token])
        yield TokenEvent(submit.request_id, submit.prompt[-1:], "length")

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=f"Hello {number}", max_tokens=50, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def work() -> list[str]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=20) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(20)))

    server.node.script = echo
    assert asyncio.run(work()) == [f"Hello {number}" for number in range(20)]


def test_a_node_that_dies_ends_streams_with_an_error_event(
    server: RunningServer, http: httpx.Client
) -> None:
    server.node.script = endless(TOKEN)
    body = {"prompt": "x", "stream": True, "max_tokens": 9}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert '"text":"x"' in next(lines)
        server.call(server.engine.fail, "expert node 1 was killed by SIGKILL")
        rest = [line for line in lines if line]
    assert rest == [
        'data: {"error": {"message": "expert node 1 was killed by SIGKILL", "type": '
        '"server_error", "param": null, "code": "engine_unavailable"}}',
        "data: [DONE]",
    ]


def test_the_openai_client_raises_what_happened_mid_stream(server: RunningServer) -> None:
    server.node.script = endless(TOKEN)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = iter(client.completions.create(model="tiny", prompt="x", stream=True))
        next(stream)
        server.call(server.engine.fail, "attention node 0 was killed")
        with pytest.raises(openai.APIError, match="attention node 0 was killed"):
            next(stream)


@pytest.mark.parametrize("stream", [True, False])
def test_a_death_before_the_first_token_is_a_503_and_so_is_health(
    server: RunningServer, http: httpx.Client, stream: bool
) -> None:
    async def dying(submit: Submit) -> AsyncIterator[TokenEvent]:
        server.engine.fail("attention node 0 was killed")
        return
        yield

    server.node.script = dying
    answers = [
        http.post("/v1/completions", json={"prompt": "x", "stream": stream}),
        http.get("/health"),
        http.post("/v1/completions", json={"prompt": "again", "stream": stream}),
    ]
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "attention node 0 was killed"


def test_the_end_of_the_server_ends_streams_with_an_error_event(
    server: RunningServer, http: httpx.Client
) -> None:
    server.node.script = endless(TOKEN)
    body = {"prompt": "x", "stream": True, "max_tokens": 9}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.stop()
        rest = [line for line in lines if line]
    assert "the server is shutting down" in rest[0]
    with pytest.raises(httpx.ConnectError):
        http.get("/health")


def test_a_client_that_does_not_read_cannot_hold_up_the_end() -> None:
    backend = byte_level_backend()
    backend.add_tokens(["y" * 100_000])
    long_token = backend.token_to_id("y" * 100_000)

    async def flooding(submit: Submit) -> AsyncIterator[TokenEvent]:
        for _ in range(200):  # 20 MB, more than sockets buffer
            yield TokenEvent(submit.request_id, [long_token])

    with RunningServer(Tokenizer(FastBackend(backend), {})) as server:
        server.node.script = flooding
        connection = raw_request(server, '{"prompt": "x", "stream": true, "max_tokens": 250}')
        wait_for_headers(connection)
        server.stop()
        connection.close()


def test_a_body_that_does_not_come_is_given_up(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http.body.BODY_SECONDS", 0.05)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    assert answer.status == 408
    assert b"did not arrive within 0.05 s" in body
