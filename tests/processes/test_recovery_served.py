"""A server some of whose processes are killed while it streams: clients see a pause at most."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_experts import levels
from tests.support.served import CONTEXT, ENDLESS, Served, serving

TOKENS = 500
WAIT_SECONDS = 30.0
BODIES: list[dict[str, Any]] = [
    {"prompt": [5, 6, 7], "temperature": 0},
    {"prompt": [5, 6, 7, 8], "temperature": 1, "seed": 3, "n": 2},
    {"prompt": [9] * 40, "temperature": 0.8, "seed": 4, "frequency_penalty": 0.3},
    {"prompt": [11, 12] * 9, "temperature": 0, "logit_bias": {"7": 2}},
]
Answer = dict[int, list[Any]]
"""By choice: of each token, its id and log-probabilities."""

pytestmark = pytest.mark.skipif(not levels(), reason="kernels are not built")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("model")
    write_checkpoint("qwen3_moe", "gqa", folder, max_position_embeddings=CONTEXT)
    flags = ("--attn-gpus", "2", "--ffn-gpus", "2", "--api-servers", "2")
    with serving(str(folder), *flags) as served:
        yield served


class Streaming:
    """A streamed completion on a thread of its own, on a connection of its own."""

    def __init__(self, url: str, body: dict[str, Any], tokens: int = TOKENS) -> None:
        more = {"max_tokens": tokens, "ignore_eos": True, "stream": True, "logprobs": 1}
        self._body = {"return_tokens_as_token_ids": True, **more, **body}
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self.server = self._client.get("/server_info").json()["api_server"]
        self.answer: Answer = {}
        self.error: Exception | dict[str, Any] | None = None
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def end(self) -> Answer:
        """All of it, once it has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.error is None, self.error
        return self.answer

    def broken(self) -> bool:
        """Whether it ended with an error, once it has ended."""
        self._thread.join(60)
        return self.error is not None

    def close(self) -> None:
        self._client.close()
        self._thread.join(60)

    def _read(self) -> None:
        try:
            with self._client.stream("POST", "/v1/completions", json=self._body) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        self._hear(json.loads(line[6:]))
        except httpx.HTTPError as error:
            self.error = error

    def _hear(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event
            return
        for choice in event["choices"]:
            said = choice["logprobs"]
            tokens = zip(said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True)
            self.answer.setdefault(choice["index"], []).extend(tokens)
        self.begun.set()


@pytest.fixture(scope="module")
def undisturbed(served: Served) -> list[Answer]:
    return [Streaming(served.url, body).end() for body in BODIES]


def until(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.02)


def get(served: Served, path: str) -> httpx.Response:
    return httpx.get(served.url + path, timeout=20, trust_env=False)


def is_whole(served: Served) -> bool:
    return bool(get(served, "/health").json() == {"status": "ok"})


def counted(served: Served, name: str) -> dict[tuple[str, ...], float]:
    """A family's samples, by their labels but the model's name, of any API server that serves: one
    that has just been started again doesn't know of all nodes yet, and says so."""
    answers = list[httpx.Response]()

    def is_told() -> bool:
        answers.append(get(served, "/metrics"))
        assert answers[-1].status_code in (200, 503)
        return answers[-1].status_code == 200

    until(is_told)
    families = text_string_to_metric_families(answers[-1].text)
    return {
        tuple(value for label, value in sorted(s.labels.items()) if label != "model_name"): s.value
        for family in families
        for s in family.samples
        if s.name == f"megainfer:{name}"
    }


@pytest.mark.parametrize("victim", ["attent-0", "expert-1", "attent-1"])
def test_whoever_dies_every_stream_is_what_it_would_have_been(
    served: Served, undisturbed: list[Answer], victim: str
) -> None:
    until(lambda: is_whole(served))
    streams = [Streaming(served.url, body) for body in BODIES]
    for stream in streams:
        assert stream.begun.wait(WAIT_SECONDS)
    os.kill(served.node(victim), signal.SIGKILL)
    assert [stream.end() for stream in streams] == undisturbed
    role, _, number = victim.partition("-")
    role = {"attent": "attention", "expert": "expert"}[role]
    until(lambda: counted(served, "node_restarts_total").get((number, role), 0.0) >= 1)
    if role == "attention":
        assert sum(counted(served, "requests_replayed_total").values()) >= 1


def test_an_api_server_takes_only_its_own_connections_with_it(
    served: Served, undisturbed: list[Answer]
) -> None:
    until(lambda: is_whole(served))
    streams = [Streaming(served.url, BODIES[0], ENDLESS)]
    while {stream.server for stream in streams} != {0, 1}:  # the kernel chooses
        streams.append(Streaming(served.url, BODIES[0], ENDLESS))
    for stream in streams:
        assert stream.begun.wait(WAIT_SECONDS)
    os.kill(served.node("server-0"), signal.SIGKILL)
    lost = [stream for stream in streams if stream.server == 0]
    kept = [stream for stream in streams if stream.server == 1]
    assert all(stream.broken() for stream in lost)
    so_far = [len(stream.answer[0]) for stream in kept]
    until(lambda: all(len(s.answer[0]) > n for s, n in zip(kept, so_far, strict=True)))
    until(lambda: sum(counted(served, "num_requests_running").values()) == len(kept))
    for stream in kept:
        stream.close()
    until(lambda: sum(counted(served, "num_requests_running").values()) == 0)
    until(lambda: {server for *_, server in counted(served, "server_load")} == {"0", "1"})
    again = [Streaming(served.url, BODIES[0])]
    while {stream.server for stream in again} != {0, 1}:
        again.append(Streaming(served.url, BODIES[0]))
    assert all(stream.end() == undisturbed[0] for stream in again)


def test_in_the_end_it_ends_in_order(served: Served) -> None:
    os.kill(served.process.pid, signal.SIGINT)
    assert served.end() == 0
    assert served.members() == []
