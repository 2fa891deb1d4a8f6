"""What the server asks of its clients and tells its operator, over a mock attention node."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from megainfer.errors import ConfigError
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.serving_options import ServingOptions, read_keys
from megainfer.messages.requests import Abort, RequestFailed, Submit, TokenEvent
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.app import create_app
from server.http import guesses
from server.http.access import PROBES, Access, access_to
from server.operate.metrics.log_line import TrafficLog
from server.page.assets import PAGE
from tests.support.scripted_server import (
    WAIT_SECONDS,
    RunningServer,
    byte_level_backend,
    endless,
    silent,
    speaking,
)

TOKENIZER = Tokenizer(FastBackend(byte_level_backend()), {})
TOKEN = TOKENIZER.encode("x")[0]
KEYS = ServingOptions(api_keys=("first", "second"), admin_keys=("root",))
BODY = {"prompt": "x", "max_tokens": 5}


@contextmanager
def running(options: ServingOptions | None = None) -> Iterator[tuple[RunningServer, httpx.Client]]:
    with (
        RunningServer(TOKENIZER, options=options) as server,
        httpx.Client(base_url=server.url, timeout=20, trust_env=False) as http,
    ):
        yield server, http


@pytest.fixture(scope="module")
def keyed() -> Iterator[tuple[RunningServer, httpx.Client]]:
    with running(KEYS) as both:
        yield both


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes_of(server: RunningServer) -> Iterator[tuple[str, str]]:
    """(method, path) of everything that the application answers to."""
    app = create_app(server.engine, TOKENIZER, server._model, server.instance)
    paths = set()
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        for own in [route] if inner is None else inner.routes:
            assert hasattr(own, "path"), own
            methods = own.methods if isinstance(own, APIRoute) else {"GET"}
            paths |= {(method, own.path) for method in methods}
    yield from sorted(paths)


# --- keys -----------------------------------------------------------------------------------------


def test_every_route_but_the_probes_asks_for_a_key(
    keyed: tuple[RunningServer, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, http = keyed
    monkeypatch.setattr(guesses, "FREE", 10_000)  # else each answer takes a second
    routes = list(routes_of(server))
    assert {("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/openapi.json")} <= {*routes}
    for method, path in routes:
        path = path.replace("{model_id:path}", "tiny")
        for headers in ({}, bearer("wrong"), {"x-api-key": "wrong"}, {"Authorization": "first"}):
            response = http.request(method, path, headers=headers)
            if path in PROBES or path in PAGE:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, (path, headers)
                kind = "authentication_error" if path.startswith("/v1/messages") else None
                error = response.json()["error"]
                assert error["type"] == kind or error["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/nothing", "/health/", "/v1", "/%2Flive", "/static/x", "/Live"])
def test_an_address_that_nobody_thought_of_is_guarded(
    keyed: tuple[RunningServer, httpx.Client], path: str
) -> None:
    assert keyed[1].get(path).status_code == 401


def test_each_key_opens_what_it_should(keyed: tuple[RunningServer, httpx.Client]) -> None:
    _, http = keyed
    for key in KEYS.api_keys:
        assert http.get("/v1/models", headers=bearer(key)).status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": key}).status_code == 200
        refused = http.get("/server_info", headers=bearer(key))
        assert refused.status_code == 403
        assert "needs an admin key" in refused.json()["error"]["message"]
    assert http.get("/server_info", headers=bearer("neither")).status_code == 401
    for path in ("/v1/models", "/server_info", "/debug/nodes", "/metrics", "/docs"):
        assert http.get(path, headers=bearer("root")).status_code == 200
    assert http.get("/v1/models", headers={"Authorization": "bearer first"}).status_code == 200
    text = http.get("/server_info", headers=bearer("root")).text
    assert '"second"' not in text


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (ServingOptions(), 200),
        (ServingOptions(loopback=False), 403),
        (ServingOptions(api_keys=("k",)), 403),
        (ServingOptions(api_keys=("k",), admin_keys=("root",)), 403),
    ],
    ids=["loopback", "open", "keys", "admin"],
)
def test_without_an_admin_key_the_inside_is_for_this_machine_alone(
    options: ServingOptions, status: int
) -> None:
    with running(options) as (_, http):
        response = http.get("/server_info", headers=bearer("k"))
        assert response.status_code == status
        if status == 403:
            assert "admin" in response.json()["error"]["message"]


def test_metrics_may_be_public() -> None:
    with running(replace(KEYS, public_metrics=True)) as (_, http):
        assert http.get("/metrics").status_code == 200
        assert http.get("/load").status_code == 401
    assert access_to("/metrics/x", public_metrics=True) is Access.KEY


@pytest.mark.parametrize(
    "path",
    [
        *("/update_weights_from_disk", "/pause_generation", "/continue_generation"),
        *("/pause", "/resume", "/is_paused", "/get_world_size"),
        *("/init_weights_update_group", "/update_weights_from_distributed"),
        *("/destroy_weights_update_group", "/init_weight_transfer_engine", "/update_weights"),
    ],
)
def test_what_trainers_ask_is_an_administrators(
    keyed: tuple[RunningServer, httpx.Client], path: str
) -> None:
    _, http = keyed
    method = "GET" if path in ("/is_paused", "/get_world_size") else "POST"
    assert http.request(method, path, headers=bearer("first"), json={}).status_code == 403
    assert http.get("/weight_version", headers=bearer("first")).json() == {"weight_version": "0"}
    assert http.request(method, path, headers=bearer("root"), json={}).status_code in (200, 400)


def test_keys_are_read_and_checked_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalpha\n\n  beta  \n")
    assert read_keys("--api-key", ["gamma"], file) == ("gamma", "alpha", "beta")
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys("--api-key", [], file)
    with pytest.raises(ConfigError, match=r"--api-key-file .*can't be read"):
        read_keys("--api-key", [], tmp_path / "none")
    for bad in ("", "two words", "schlüssel", "line\n", "k" * 513):
        with pytest.raises(ConfigError, match="key 2 must be") as raised:
            ServingOptions(api_keys=("fine", bad))
        assert not bad or bad not in str(raised.value)
    assert "fine" not in repr(ServingOptions(api_keys=("fine",)))


def test_an_empty_bearer_hides_no_key(keyed: tuple[RunningServer, httpx.Client]) -> None:
    _, http = keyed
    headers = {"Authorization": "Bearer", "x-api-key": "first"}
    assert http.get("/v1/models", headers=headers).status_code == 200
    assert http.get("/v1/models", headers={**headers, "x-api-key": "x"}).status_code == 401


@pytest.mark.parametrize("path", [*sorted(PROBES), "/"])
def test_probes_answer_to_head_as_well(
    keyed: tuple[RunningServer, httpx.Client], path: str
) -> None:
    response = keyed[1].head(path)
    assert (response.status_code, response.content) == (200, b"")


# --- names of this machine ------------------------------------------------------------------------


def test_a_page_that_has_its_name_resolve_to_this_machine_is_refused() -> None:
    with running(ServingOptions(allowed_hosts=("Proxy.example", "ported.example:8443"))) as (
        _,
        http,
    ):
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.x"):
            for path in ("/v1/models", "/server_info", "/nothing"):
                response = http.get(path, headers={"Host": host})
                assert response.status_code == 403, host
                assert response.json()["error"]["code"] == "host_not_allowed"
                assert "--allowed-hosts" in response.json()["error"]["message"]
        for host in (
            *("localhost", "LOCALHOST:99", "api.localhost:1", "127.0.0.1:8000", "[::1]:80"),
            *("10.0.0.3", "proxy.example:8000", "localhost.", "ported.example:8443"),
        ):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 200, host
        for path in PROBES | {"/"}:
            assert http.get(path, headers={"Host": "evil.example"}).status_code == 200


@pytest.mark.parametrize(
    "options",
    [
        ServingOptions(loopback=False),
        ServingOptions(api_keys=("k",)),
        ServingOptions(admin_keys=("k",)),
        ServingOptions(allowed_hosts=("*",)),
    ],
    ids=["not only here", "key", "admin key", "any"],
)
def test_elsewhere_any_name_will_do(options: ServingOptions) -> None:
    with running(options) as (_, http):
        headers = {"Host": "api.example", **bearer("k")}
        assert http.get("/v1/models", headers=headers).status_code == 200


# --- around an answer -----------------------------------------------------------------------------


def test_a_request_id_is_echoed_if_it_is_plain_else_made() -> None:
    with running() as (server, http):
        server.node.script = speaking(TOKEN)
        for method, path in (("GET", "/health"), ("POST", "/v1/completions"), ("GET", "/none")):
            response = http.request(method, path, json=BODY, headers={"X-Request-Id": "abc-1.2:3"})
            assert response.headers["x-request-id"] == "abc-1.2:3"
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            assert len(response.headers["x-request-id"]) == 32
        for bad in ("a" * 129, "a b", "<script>", "é".encode()):
            response = http.get("/health", headers={"X-Request-Id": bad})
            assert len(response.headers["x-request-id"]) == 32


def test_an_unforeseen_error_carries_the_request_id_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as (server, http):
        monkeypatch.setattr(server.engine, "submit", lambda *_: 1 / 0)
        headers = {"X-Request-Id": "me"}
        response = http.post("/v1/completions", json=BODY, headers=headers)
        assert (response.status_code, response.headers["x-request-id"]) == (500, "me")


def test_web_pages_of_allowed_origins_may_ask_even_before_they_have_a_key() -> None:
    origins = replace(KEYS, allowed_origins=("https://ours.example",))
    with running(origins) as (_, http):
        asked = {"Access-Control-Request-Method": "POST", "Origin": "https://ours.example"}
        asked["Access-Control-Request-Headers"] = "authorization"
        response = http.options("/v1/completions", headers=asked)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://ours.example"
        assert "authorization" in response.headers["access-control-allow-headers"].lower()
        refused = http.options(
            "/v1/completions", headers={**asked, "Origin": "https://theirs.example"}
        )
        assert "access-control-allow-origin" not in refused.headers
    with running() as (_, http):
        response = http.get("/v1/models", headers={"Origin": "https://ours.example"})
        assert "access-control-allow-origin" not in response.headers


def test_the_page_of_addresses_loads_nothing() -> None:
    with running() as (_, http):
        page = http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "/v1/chat/completions" in page.text
        assert "http" not in page.text.replace("http-equiv", "")
        assert "<script" not in page.text
        assert http.get("/redoc").status_code == 404
        assert http.get("/version").json().keys() == {"version"}


# --- too much -------------------------------------------------------------------------------------


def refused(response: httpx.Response, code: str) -> str:
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", code)
    return str(error["message"])


def test_a_full_queue_refuses_and_takes_again_when_there_is_room() -> None:
    options = ServingOptions(limits=QueueLimits(queued=1))  # beside the 8 that the mock runs
    with running(options) as (server, http):
        server.node.script = endless(TOKEN)
        with http.stream("POST", "/v1/completions", json={**BODY, "n": 9, "stream": True}) as taken:
            assert taken.status_code == 200
            message = refused(http.post("/v1/completions", json=BODY), "overloaded")
            assert "9 sequences are in flight, 8 can run at once and 1 may wait" in message
            assert http.get("/load").json() == {"server_load": 1}
        for _ in range(9):
            server.node.expect(Abort)
        server.node.script = speaking(TOKEN)
        assert http.post("/v1/completions", json=BODY).status_code == 200


@pytest.mark.parametrize("script", [silent, endless(TOKEN)], ids=["before", "after"])
def test_a_request_that_takes_too_long_is_ended_everywhere(script: Any) -> None:
    with running(ServingOptions(limits=QueueLimits(total_seconds=0.2))) as (server, http):
        server.node.script = script
        message = refused(http.post("/v1/completions", json=BODY), "request_timeout")
        assert "after 0.2 s" in message
        server.node.expect(Abort)
        assert server.engine.outstanding == 0
        text = http.post("/v1/completions", json={**BODY, "stream": True}).text
        assert "after 0.2 s" in text


def test_one_that_waited_too_long_is_told_to_try_again() -> None:
    async def busy(submit: Submit) -> AsyncIterator[RequestFailed]:
        yield RequestFailed(0, submit.request_id, "waited", overloaded=True)

    with running(ServingOptions(limits=QueueLimits(queue_seconds=3.0))) as (server, http):
        server.node.script = busy
        assert refused(http.post("/v1/completions", json=BODY), "overloaded") == "waited"
        assert server.node.expect(Submit).max_queue_seconds == 3.0


@pytest.mark.parametrize(
    ("wish", "flag"),
    [
        ({"limits": QueueLimits(queued=-1)}, "--max-queued-requests"),
        ({"limits": QueueLimits(queue_seconds=0.0)}, "--queue-timeout"),
        ({"limits": QueueLimits(total_seconds=float("nan"))}, "--request-timeout"),
        ({"drain_seconds": -1.0}, "--drain-timeout"),
        ({"patience": 0.5}, "--health-timeout"),
        ({"certificate": Path("x.pem")}, "--ssl-keyfile"),
        ({"certificate": Path("x.pem"), "private_key": Path("y.pem")}, "--ssl-certfile x.pem"),
    ],
)
def test_impossible_options_are_named(wish: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        ServingOptions(**wish)


# --- draining -------------------------------------------------------------------------------------


def test_while_draining_streams_finish_and_nothing_new_comes_in() -> None:
    async def two(submit: Submit) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(submit.request_id, [TOKEN])
        while not server.instance.occupancy.draining or http_done.empty():
            await asyncio.sleep(0.01)
        yield TokenEvent(submit.request_id, [TOKEN], "length")

    with running() as (server, http):
        http_done: asyncio.Queue[None] = asyncio.Queue()
        server.node.script = two
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            drained = asyncio.run_coroutine_threadsafe(
                server.instance.occupancy.drain(), server._loop
            )
            while http.get("/health").status_code == 200:
                pass
            assert "draining" in http.get("/health").json()["error"]["message"]
            assert http.get("/live").status_code == 200
            assert http.get("/ready").status_code == 503
            refused(http.post("/v1/completions", json=BODY), "draining")
            assert not drained.done()
            server.call(http_done.put_nowait, None)
            rest = [line for line in lines if line]
        assert '"finish_reason":"length"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        drained.result(timeout=WAIT_SECONDS)


# --- metrics --------------------------------------------------------------------------------------


def samples(http: httpx.Client) -> dict[str, float]:
    """By name and labels (without the model's name), what /metrics says."""
    found = {}
    for line in http.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.replace(',model_name="tiny"', "")] = float(value)
    return found


def test_metrics_count_what_happened() -> None:
    with running() as (server, http):
        server.node.script = speaking(TOKEN, TOKEN, TOKEN, cached=16)
        before = samples(http)
        http.post("/v1/completions", json={"prompt": "xxxx", "n": 2, "max_tokens": 3})
        http.post("/v1/completions", json={"prompt": "xxxx", "max_tokens": 1})
        server.node.script = endless(TOKEN)
        http.post("/v1/completions", json={"prompt": "x", "stop": "x", "max_tokens": 3})
        after = samples(http)

    def grew(name: str, labels: str = 'engine="0"') -> float:
        key = f"megainfer:{name}{{{labels}}}"
        return after[key] - before[key]

    prompt = len(TOKENIZER.encode("xxxx"))
    assert grew("prompt_tokens_total") == 3 * prompt + 1
    assert grew("generation_tokens_total") == 2 * 3 + 1 + 1
    assert grew("prompt_tokens_cached_total") == 3 * 16
    ended = 'engine="0",finished_reason="{}"'.format
    assert grew("request_success_total", ended("stop")) == 3
    assert grew("request_success_total", ended("length")) == 1
    assert grew("time_to_first_token_seconds_count") == 4
    assert grew("e2e_request_latency_seconds_count") == 4
    assert grew("inter_token_latency_seconds_count") == 4
    assert grew("request_time_per_output_token_seconds_count") == 2
    assert grew("request_params_n_sum") == 2 + 1 + 1
    assert grew("request_params_n_count") == 3
    assert grew("request_max_num_generation_tokens_count") == 3
    assert grew("request_max_num_generation_tokens_sum") == 3 + 1 + 1
    assert grew("request_params_max_tokens_sum") == 3 + 3 + 1 + 3
    assert after['megainfer:http_responses_total{method="POST",status="200"}'] == 3
    whole = after['megainfer:request_generation_tokens_bucket{engine="0",le="+Inf"}']
    assert whole == after['megainfer:request_generation_tokens_count{engine="0"}'] == 4


def test_hang_ups_and_errors_are_counted_by_reason_and_leave_nothing() -> None:
    async def failing(submit: Submit) -> AsyncIterator[TokenEvent | RequestFailed]:
        yield TokenEvent(submit.request_id, [TOKEN])
        yield RequestFailed(0, submit.request_id, "broken")

    with running() as (server, http):
        server.node.script = failing
        assert http.post("/v1/completions", json=BODY).status_code == 500
        server.node.script = endless(TOKEN)
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
            next(response.iter_lines())
        server.node.expect(Abort)
        totals = server.instance.counted.requests.engines[0]
        assert (totals.finished["error"], totals.finished["abort"]) == (1, 1)
        assert not server.instance.counted.requests._lives


def test_methods_that_clients_make_up_are_counted_as_one() -> None:
    with running() as (_, http):
        for number in range(3):
            assert http.request(f"MADE{number}", "/health").status_code == 405
        found = {name: value for name, value in samples(http).items() if "http_resp" in name}
        assert found['megainfer:http_responses_total{method="other",status="405"}'] == 3
        assert not [name for name in found if "MADE" in name]


def test_each_application_has_metrics_of_its_own() -> None:
    with running() as (server, http), running() as (_, other):
        server.node.script = speaking(TOKEN)
        http.post("/v1/completions", json=BODY)
        name = 'megainfer:generation_tokens_total{engine="0"}'
        assert (samples(http)[name], samples(other)[name]) == (1, 0)


def test_a_probe_for_readiness_is_no_request() -> None:
    with running() as (server, http):
        server.node.script = speaking(TOKEN)
        assert http.get("/ready").status_code == 200
        assert server.node.expect(Submit).max_tokens == 1
        assert http.get("/ready").status_code == 200  # the first token still proves it
        assert server.node.heard.empty()
        assert samples(http)['megainfer:generation_tokens_total{engine="0"}'] == 0


def test_a_line_tells_of_traffic_and_falls_silent_without() -> None:
    with running() as (server, http):
        now = [0.0]
        board, requests = server.instance.board, server.instance.counted.requests
        traffic = TrafficLog(requests, board, clock=lambda: now[0])
        server.node.script = speaking(TOKEN, TOKEN)
        http.post("/v1/completions", json=BODY)
        now[0] = 2.0
        line = traffic.line() or ""
        assert line.startswith("prompts 0.5 tokens/s, generation 1.0 tokens/s, running 0")
        now[0] = 4.0
        assert "generation 0.0 tokens/s" in (traffic.line() or "")
        now[0] = 6.0
        assert traffic.line() is None


# --- traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["0", "61", "nan", "x"])
def test_a_trace_has_bounds(seconds: str) -> None:
    with running() as (_, http):
        response = http.get(f"/debug/trace?seconds={seconds}")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "seconds"


def test_a_trace_ends_with_its_client() -> None:
    with running() as (server, http):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), WAIT_SECONDS) as connection:
            request = b"GET /debug/trace?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            connection.sendall(request)
            short = "/debug/trace?seconds=0.01"
            wait_for(lambda: http.get(short).status_code == 409)
        wait_for(lambda: http.get(short).status_code == 200)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + WAIT_SECONDS
    while not condition():
        assert monotonic() < deadline


def test_a_trace_of_nobody_is_an_empty_document() -> None:
    with running() as (_, http):
        document = json.loads(http.get("/debug/trace?seconds=0.01").content)
        assert document == {"traceEvents": [], "displayTimeUnit": "ms"}
