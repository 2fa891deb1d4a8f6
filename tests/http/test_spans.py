"""Spans as an OpenTelemetry collector gets them, and a server whose collector is none."""

import queue
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from megainfer.errors import ConfigError
from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.requests import FinishReason, Submit
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from tests.support.scripted_server import (
    WAIT_SECONDS,
    RunningServer,
    byte_level_backend,
    endless,
    raw_request,
    silent,
    speaking,
)

TOKENIZER = Tokenizer(FastBackend(byte_level_backend()), {})
TOKEN = TOKENIZER.encode("x")[0]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes what is posted to /v1/traces. spans: (service, span)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: queue.Queue[tuple[str, Span]] = queue.Queue()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {item.key: item.value.string_value for item in group.resource.attributes}
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.server.spans.put((resource["service.name"], span))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[RunningServer]:
    options = ServingOptions(traces_endpoint=collector.endpoint)
    with RunningServer(TOKENIZER, options=options) as server:
        yield server


def post(server: RunningServer, headers: dict[str, str] | None = None, **body: Any) -> Any:
    asked = {"prompt": "xxx", "max_tokens": 4, **body}
    with httpx.Client(trust_env=False, timeout=WAIT_SECONDS) as http:
        response = http.post(f"{server.url}/v1/completions", json=asked, headers=headers)
    return response.json()


def attributes(span: Span) -> dict[str, Any]:
    found = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        is_list = kind == "array_value"
        found[item.key] = [one.string_value for one in value.values] if is_list else value
    return found


def test_a_request_is_one_span_in_its_callers_trace(
    server: RunningServer, collector: Collector
) -> None:
    server.node.script = speaking(*[TOKEN] * 4, finish=FinishReason.LENGTH)
    caller = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
    answer = post(server, caller, n=2, temperature=0.5, top_p=0.75)
    service, span = collector.spans.get(timeout=WAIT_SECONDS)
    assert (service, span.name) == ("megainfer", "llm_request")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.status.code == Status.STATUS_CODE_UNSET
    found = attributes(span)
    latencies = {key: found.pop(key) for key in list(found) if key.startswith("gen_ai.latency.")}
    assert found == {
        "gen_ai.request.id": answer["id"],
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.request.n": 2,
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.prompt_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.completion_tokens": 8,
        "gen_ai.usage.num_sequences": 2,
        "http.response.header.x-request-id": ["mine"],
    }
    names = ("e2e", "time_to_first_token", "time_in_queue", "time_in_model_inference")
    e2e, first, queued, inference = (latencies[f"gen_ai.latency.{name}"] for name in names)
    assert 0 <= queued <= first <= e2e
    assert inference <= e2e <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 + 0.1


def test_without_a_caller_a_request_begins_a_trace(
    server: RunningServer, collector: Collector
) -> None:
    server.node.script = speaking(TOKEN, TOKEN)
    seen = set()
    for headers in ({}, {"traceparent": "nonsense"}):
        post(server, headers)
        _, span = collector.spans.get(timeout=WAIT_SECONDS)
        assert span.parent_span_id == b""
        seen.add(span.trace_id)
    assert len(seen) == 2


def test_a_trace_that_its_caller_does_not_sample_gets_no_span(
    server: RunningServer, collector: Collector
) -> None:
    server.node.script = speaking(TOKEN, TOKEN)
    post(server, {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    post(server, {"traceparent": f"00-{PARENT * 2}-{PARENT}-01"})
    _, span = collector.spans.get(timeout=WAIT_SECONDS)
    assert span.trace_id.hex() == PARENT * 2


def test_failures_are_told_and_the_last_spans_are_sent_at_the_end(collector: Collector) -> None:
    options = ServingOptions(traces_endpoint=collector.endpoint)
    with RunningServer(TOKENIZER, options=options) as server:
        server.node.script = endless(TOKEN)
        with (
            httpx.Client(trust_env=False, timeout=WAIT_SECONDS) as http,
            http.stream(
                "POST", f"{server.url}/v1/completions", json={"prompt": "x", "stream": True}
            ) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            server.call(server.engine.fail, "expert node 2 was killed")
            list(lines)
    _, span = collector.spans.get(timeout=WAIT_SECONDS)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["gen_ai.response.finish_reasons"] == ["error"]
    assert attributes(span)["gen_ai.usage.completion_tokens"] == 1


def test_a_collector_that_is_not_there_disturbs_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ServingOptions(traces_endpoint=f"http://127.0.0.1:{port}/v1/traces")
    with RunningServer(TOKENIZER, options=options) as server:
        server.node.script = speaking(TOKEN, TOKEN)
        for _ in range(3):
            assert post(server)["choices"][0]["text"]
        assert server.engine.outstanding == 0


def test_a_client_that_hangs_up_ends_its_span(server: RunningServer, collector: Collector) -> None:
    server.node.script = silent
    while not server.node.heard.empty():
        server.node.heard.get_nowait()
    with raw_request(server, '{"prompt": "x"}'):
        server.node.expect(Submit)
    _, span = collector.spans.get(timeout=WAIT_SECONDS)
    assert attributes(span)["gen_ai.response.finish_reasons"] == ["abort"]
    assert "gen_ai.latency.time_to_first_token" not in attributes(span)


@pytest.mark.parametrize("url", ["", "collector:4318", "grpc://x:4317", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--otlp-traces-endpoint must be"):
        ServingOptions(traces_endpoint=url)


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("megainfer.frontend.serving_options.find_spec", find_spec)
    with pytest.raises(ConfigError, match=r"pip install 'megainfer\[otel\]'"):
        ServingOptions(traces_endpoint="http://127.0.0.1:4318/v1/traces")
