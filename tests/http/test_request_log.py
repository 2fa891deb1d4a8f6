"""What a failed request leaves in the log: the id with which its client can ask for it."""

import io
import logging
import re
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from megainfer.errors import Overloaded
from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.requests import RequestFailed, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.http.request_id import name_requests
from tests.support.scripted_server import WAIT_SECONDS, RunningServer, byte_level_backend, speaking

TOKENIZER = Tokenizer(FastBackend(byte_level_backend()), {})
TOKEN = TOKENIZER.encode("x")[0]


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a server's process would print, in its format."""
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.Logger("only this handler")
    logger.addHandler(handler)
    name_requests(logger)
    logging.getLogger().addHandler(handler)
    yield shown
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER) as server:
        yield server


def post(server: RunningServer, path: str, request_id: str, **body: object) -> httpx.Response:
    asked = {"model": "tiny", "max_tokens": 4, **body}
    headers = {"X-Request-Id": request_id}
    with httpx.Client(trust_env=False, timeout=WAIT_SECONDS) as http:
        return http.post(f"{server.url}{path}", json=asked, headers=headers)


async def failing(submit: Submit) -> AsyncIterator[TokenEvent | RequestFailed]:
    yield TokenEvent(submit.request_id, [TOKEN])
    yield RequestFailed(0, submit.request_id, "50% of a step's rows were not finite")


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_logged_with_its_request(
    server: RunningServer, lines: io.StringIO, stream: bool
) -> None:
    server.node.script = failing
    post(server, "/v1/completions", f"mine-{stream}", prompt="x", stream=stream)
    assert lines.getvalue() == (
        f"WARNING a request failed: 50% of a step's rows were not finite [request mine-{stream}]\n"
    )


def test_an_unforeseen_error_is_logged_once_with_its_request(
    server: RunningServer, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.engine, "submit", lambda *_, **__: 1 / 0)
    assert post(server, "/v1/completions", "mine", prompt="x").status_code == 500
    httpx.get(f"{server.url}/live", trust_env=False)  # it is logged right after it is answered
    assert lines.getvalue().count("[request mine]") == 1
    assert lines.getvalue().count("Traceback") == 1
    assert "ZeroDivisionError" in lines.getvalue()


def test_what_clients_do_and_overload_are_not_logged_one_by_one(
    server: RunningServer, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.node.script = speaking(TOKEN)
    assert post(server, "/v1/completions", "a", prompt="x", top_p=-1).status_code == 400
    assert post(server, "/v1/nothing", "b").status_code == 404

    def overloaded(*_: object, **__: object) -> None:
        raise Overloaded("there is no room")

    monkeypatch.setattr(server.engine, "submit", overloaded)
    assert post(server, "/v1/completions", "c", prompt="x").status_code == 503
    assert lines.getvalue() == ""


def test_lines_beside_requests_stay_as_they_are(server: RunningServer, lines: io.StringIO) -> None:
    server.call(logging.getLogger("megainfer").warning, "%s of all", "50%")
    server.node.script = speaking(TOKEN)
    post(server, "/v1/completions", "mine", prompt="x")
    assert lines.getvalue() == "WARNING 50% of all\n"


def test_an_access_log_has_a_line_for_every_request(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megainfer.access"), "level", logging.INFO)
    with RunningServer(TOKENIZER, options=ServingOptions(access_log=True)) as server:
        server.node.script = speaking(TOKEN)
        post(server, "/v1/completions?key=secret", "first", prompt="x", stream=True)
        post(server, "/no%0Asuch", "second")
    first, second = lines.getvalue().splitlines()
    assert re.fullmatch(
        r"INFO 127\.0\.0\.1:\d+ POST /v1/completions 200 \d+\.\d{3} s \[request first\]", first
    )
    assert "POST /no%0Asuch 404 " in second
