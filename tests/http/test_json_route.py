"""Which handlers of JSON are called straight away, and what of a body is told when it is wrong."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute

from megainfer.frontend.serving_options import ServingOptions
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.app import create_app
from server.http import beginnings, body, json_route
from tests.support.attacking import ANSWER_SECONDS
from tests.support.scripted_server import RunningServer, byte_level_backend

TOKENIZER = Tokenizer(FastBackend(byte_level_backend()), {})
HOSTILE, HONEST = "hostile-key", "honest-key"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER, options=ServingOptions(api_keys=(HOSTILE, HONEST))) as server:
        yield server


def test_what_generates_is_called_straight_away_and_what_has_a_path_is_not(
    server: RunningServer,
) -> None:
    app = create_app(server.engine, TOKENIZER, server._model, server.instance)
    own = [route for route in app.router.routes if isinstance(route, APIRoute)]
    straight = {route.path for route in own if json_route._straight(route.endpoint)}
    posts = {route.path for route in own if "POST" in (route.methods or ())}
    assert straight == posts
    assert "/v1/chat/completions" in straight


@pytest.mark.parametrize(
    ("text", "param", "message"),
    [
        (b"[]", None, "the body: input should be a valid dictionary"),
        (b"null", None, "the body: input should be a valid dictionary"),
        (b"{}", "prompt", "prompt: field required"),
        (b'{"prompt": [1], "max_tokens": "5"}', "max_tokens", "valid integer, not '5'"),
        (b'{"prompt": [1], "stop_token_ids": [1, "a"]}', "stop_token_ids[1]", "valid integer"),
    ],
)
def test_what_is_wrong_is_told_with_where(
    server: RunningServer, text: bytes, param: str | None, message: str
) -> None:
    answer = post(server, HONEST, text)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_what_a_request_takes_at_once_and_bytes_of_large_bodies_are_noted_for_its_client(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[str, float]] = []
    rests = server.instance.beginnings._rests
    monkeypatch.setattr(rests, "note", lambda client, seconds: noted.append((client, seconds)))
    post(server, HONEST, b'{"prompt": [1], "max_tokens": 1}')
    assert not noted, "that was nothing"
    monkeypatch.setattr(beginnings, "HELD_SECONDS", 0.0)
    post(server, HONEST, b'{"prompt": [1], "max_tokens": 1}')
    (client,) = {client for client, _ in noted}
    assert client.startswith("key ")
    noted.clear()
    monkeypatch.setattr(beginnings, "HELD_SECONDS", 1.0)
    post(server, HOSTILE, b'{"prompt": [1], "max_tokens": 1}' + b" " * 10 * body.USUAL_BYTES)
    (other,) = {client for client, _ in noted}
    assert other != client
    read = sum(seconds for _, seconds in noted) / beginnings.READ_SECONDS
    assert 9 * body.USUAL_BYTES <= read <= 11 * body.USUAL_BYTES


def post(server: RunningServer, key: str, text: bytes) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return httpx.post(
        f"{server.url}/v1/completions",
        content=text,
        headers=headers,
        trust_env=False,
        timeout=ANSWER_SECONDS,
    )
