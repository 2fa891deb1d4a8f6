"""Streams as those see them who stand between: bytes before the first token, one line an event."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from megainfer.messages.requests import Abort, FinishReason, RequestFailed, Submit, TokenEvent
from megainfer.text.chat_template import ChatTemplate
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.http import connection
from server.openai.one_line import encode_line
from tests.support.scripted_server import (
    CHAT_TEMPLATE,
    WAIT_SECONDS,
    RunningServer,
    byte_level_backend,
    speaking,
)

TOKENIZER = Tokenizer(
    FastBackend(byte_level_backend()), {"default": ChatTemplate(CHAT_TEMPLATE, {})}
)
(END,) = TOKENIZER.encode("<|im_end|>")
COMMENT = connection.COMMENT["body"]
HI = [{"role": "user", "content": "Hi"}]
STREAMS = {
    "/v1/chat/completions": {"messages": HI, "stream": True},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 64, "stream": True},
    "/v1/messages": {"max_tokens": 64, "messages": HI, "stream": True},
    "/v1/responses": {"input": "Hi", "stream": True},
}
every_api = pytest.mark.parametrize("path", STREAMS)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER) as server:
        yield server


class Prefill:
    """A script that says nothing until it is let, then `Hello`."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._over = asyncio.Event()
        server.node.script = self._script

    async def _script(self, submit: Submit) -> AsyncIterator[TokenEvent | RequestFailed]:
        await self._over.wait()
        yield TokenEvent(submit.request_id, TOKENIZER.encode("Hello"))
        yield TokenEvent(submit.request_id, [END], FinishReason.STOP)

    def end(self) -> None:
        self._server.call(self._over.set)


def opened(server: RunningServer, path: str) -> Any:
    """The response to a stream's request, once its headers are there."""
    client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_SECONDS)
    client.request("POST", path, json.dumps(STREAMS[path]), {"Content-Type": "application/json"})
    return client.getresponse()


@every_api
def test_headers_and_comments_come_while_a_prompt_is_computed(
    server: RunningServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "COMMENT_SECONDS", 0.01)
    prefill = Prefill(server)
    response = opened(server, path)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.read(3 * len(COMMENT)) == 3 * COMMENT
    prefill.end()
    rest = response.read().decode()
    assert "Hello" in rest
    assert all(line.startswith((":", "data: ", "event: ")) for line in rest.split("\n") if line)


def test_a_silence_in_the_middle_is_bridged_as_well(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "COMMENT_SECONDS", 0.01)

    async def halting(submit: Submit) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(submit.request_id, TOKENIZER.encode("x"))

    server.node.script = halting
    response = opened(server, "/v1/completions")
    while response.readline() != COMMENT.splitlines(keepends=True)[0]:
        pass
    response.close()
    server.node.expect(Abort)


def test_clients_pass_over_comments(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "COMMENT_SECONDS", 0.01)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        prefill = Prefill(server)
        with client.chat.completions.create(model="tiny", messages=HI, stream=True) as chunks:
            prefill.end()
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello"
    with anthropic.Anthropic(base_url=server.url, api_key="-") as client:
        prefill = Prefill(server)
        with client.messages.create(model="tiny", max_tokens=9, messages=HI, stream=True) as events:
            prefill.end()
            kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


def test_a_last_token_and_what_ends_its_stream_are_one_chunk(server: RunningServer) -> None:
    async def at_once(submit: Submit) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(submit.request_id, TOKENIZER.encode("Hello"), FinishReason.LENGTH)

    server.node.script = at_once
    response = opened(server, "/v1/completions")
    chunk = response.fp.read(int(response.fp.readline(), 16))
    event, end = chunk.decode().split("\n\n", 1)
    assert json.loads(event.removeprefix("data: "))["choices"][0]["text"] == "Hello"
    assert end == "data: [DONE]\n\n"


@every_api
def test_who_hangs_up_before_the_first_token_ends_the_request(
    server: RunningServer, path: str
) -> None:
    Prefill(server)
    response = opened(server, path)
    response.close()
    server.node.expect(Abort)


@every_api
def test_what_fails_at_once_has_its_status_and_what_fails_later_an_event(
    server: RunningServer, path: str
) -> None:
    async def failing(submit: Submit) -> AsyncIterator[RequestFailed]:
        yield RequestFailed(0, submit.request_id, "no token is allowed", client_error=True)

    server.node.script = failing
    response = opened(server, path)
    assert response.status == 400
    assert "no token is allowed" in response.read().decode()
    with RunningServer(TOKENIZER) as dying:
        Prefill(dying)
        response = opened(dying, path)
        assert response.readline() == COMMENT.splitlines(keepends=True)[0]
        dying.call(dying.engine.fail, "expert node 2 was killed")
        told = response.read().decode()
    assert "expert node 2 was killed" in told
    assert "error" in told


@every_api
def test_an_event_is_one_line_however_lines_are_told(server: RunningServer, path: str) -> None:
    spoken = "a\u2028b\u0085c\u2029d\x0b\x0c\x1c\x1d\x1ee\r\nf"
    server.node.script = speaking(*TOKENIZER.encode(spoken), END)
    body = httpx.post(server.url + path, json=STREAMS[path]).text
    lines = body.splitlines()
    assert lines == body.removesuffix("\n").split("\n")
    events = [
        json.loads(line.removeprefix("data: "))
        for line in lines
        if line.startswith("data: ") and line != "data: [DONE]"
    ]
    assert spoken in "".join(map(_text_of, events))


def _text_of(event: dict[str, Any]) -> str:
    """What an event of any of the APIs adds to the answer."""
    if event.get("choices"):
        choice = event["choices"][0]
        return choice["delta"].get("content", "") if "delta" in choice else choice["text"]
    delta = event.get("delta")
    return delta if isinstance(delta, str) else (delta or {}).get("text", "")


def test_escapes_leave_the_value_as_it_is() -> None:
    value = {"\u2028": ["\u2029", "\u0085", "\\u2028", "Ą„“é"]}
    data = encode_line(value)
    assert json.loads(data) == value
    assert len(data.decode().splitlines()) == 1
