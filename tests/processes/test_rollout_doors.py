"""What trainers ask over HTTP, of a real server with two nodes of each role, while it streams."""

import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import oracle
from tests.support.old_and_new import Models, write_models
from tests.support.served import CONTEXT, Served, serving, stream

STREAMS, TOKENS = 3, 400
BEGUN = 5
SECONDS = 60.0
PROMPT = list(range(3, 40))
OPTIONS = ("--attn-gpus", "2", "--ffn-gpus", "2", "--kv-cache-memory", "16MiB")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"), max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def shared(models: Models) -> Iterator[Served]:
    with serving(str(models.old), *OPTIONS, "--enable-return-routed-experts") as served:
        yield served


@pytest.fixture
def served(shared: Served, models: Models) -> Served:
    """It serves the old weights, called 0."""
    old = {"model_path": str(models.old), "weight_version": "0"}
    assert post(shared, "/update_weights_from_disk", **old)["success"] is True
    return shared


class Streams:
    """Some answers, as their tokens come."""

    def __init__(self, served: Served) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(STREAMS)]
        self.ends: list[str | None] = [None] * STREAMS
        self.versions: list[list[str]] = [[] for _ in range(STREAMS)]
        self._served = served
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(STREAMS)]
        for thread in self._threads:
            thread.start()
        until(lambda: min(map(len, self.tokens)) >= BEGUN)

    def _run(self, number: int) -> None:
        body = {"return_token_ids": True, "ignore_eos": True}
        for event in stream(self._served, [number + 1] * 5, TOKENS, **body):
            (choice,) = event["choices"]
            self.tokens[number] += choice["token_ids"]
            self.versions[number] += [choice.get("weight_version", "0")] * len(choice["token_ids"])
            self.ends[number] = choice["finish_reason"]

    def join(self) -> None:
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


def until(reached: Any) -> None:
    deadline = monotonic() + SECONDS
    while not reached():
        assert monotonic() < deadline
        sleep(0.002)


def post(served: Served, path: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{served.url}{path}", json=body, timeout=SECONDS)
    assert response.status_code == 200, response.text
    return dict(response.json())


def get(served: Served, path: str) -> dict[str, Any]:
    return dict(httpx.get(f"{served.url}{path}", timeout=SECONDS).json())


def answer(served: Served) -> list[int]:
    body = {"prompt": [7] * 9, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    whole = post(served, "/v1/completions", **body, return_token_ids=True)
    return list(whole["choices"][0]["token_ids"])


def check_still(served: Served, streams: Streams) -> None:
    assert get(served, "/is_paused") == {"is_paused": True}
    assert httpx.get(f"{served.url}/ready", timeout=SECONDS).status_code == 503
    before = [len(tokens) for tokens in streams.tokens]
    late = threading.Thread(target=answer, args=(served,))
    late.start()
    until(lambda: waiting(served) > 0)
    # Nodes have gone round since; whatever was computed would be on its way.
    assert [len(tokens) for tokens in streams.tokens] == before
    post(served, "/resume")
    late.join(SECONDS)
    assert not late.is_alive()


def waiting(served: Served) -> int:
    nodes = get(served, "/debug/nodes")
    return sum(int(counters.get("waiting", 0)) for counters in nodes.values())


def test_keep(served: Served, models: Models) -> None:
    """Streams stand still, other weights come, and they go on with these."""
    streams = Streams(served)
    assert post(served, "/pause?mode=keep") == {"status": "paused"}
    done = post(
        served, "/update_weights_from_disk", model_path=str(models.new), weight_version="step-1"
    )
    assert done["success"] is True
    assert get(served, "/weight_version") == {"weight_version": "step-1"}
    check_still(served, streams)
    streams.join()
    assert streams.ends == ["length"] * STREAMS
    for versions in streams.versions:
        count = versions.count("0")
        assert versions == ["0"] * count + ["step-1"] * (TOKENS - count)
        assert BEGUN <= count < TOKENS
    with serving(str(models.new)) as fresh:
        expected = answer(fresh)
    assert answer(served) == expected


def test_wait(served: Served) -> None:
    streams = Streams(served)
    assert post(served, "/pause?mode=wait") == {"status": "paused"}
    streams.join()
    assert streams.ends == ["length"] * STREAMS
    check_still(served, streams)
    assert get(served, "/is_paused") == {"is_paused": False}


@pytest.mark.parametrize("path", ["/pause", "/pause_generation"])
def test_abort(served: Served, path: str) -> None:
    streams = Streams(served)
    post(served, path)
    streams.join()
    assert streams.ends == ["abort"] * STREAMS
    assert max(map(len, streams.tokens)) < TOKENS
    check_still(served, streams)
    assert len(answer(served)) == 16


def test_sglangs_sequence(served: Served, models: Models) -> None:
    before = answer(served)
    assert post(served, "/pause_generation", mode="retract")["status"] == "ok"
    done = post(served, "/update_weights_from_disk", model_path=str(models.new))
    assert re.fullmatch(r"weights '\d+' are in force", done.pop("message"))
    assert done == {"success": True, "num_paused_requests": 0}
    assert post(served, "/continue_generation")["status"] == "ok"
    new = answer(served)
    assert new != before
    post(
        served,
        "/update_weights_from_disk",
        model_path=str(models.old / "model.safetensors"),
        weight_version="back",
        abort_all_requests=True,
    )
    assert answer(served) == before
    assert get(served, "/get_weight_version") == {"weight_version": "back"}


def test_what_is_wrong_is_said(served: Served, models: Models, tmp_path: Path) -> None:
    before = answer(served)
    tensors = load_file(models.new / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "lacking.safetensors")
    for path, reason in (
        (tmp_path / "nowhere", "neither a folder nor a safetensors file"),
        (tmp_path / "lacking.safetensors", "holds no tensor model.norm.weight"),
    ):
        url = f"{served.url}/update_weights_from_disk"
        response = httpx.post(url, json={"model_path": str(path)}, timeout=SECONDS)
        assert response.status_code == 400
        assert response.json()["success"] is False
        assert reason in response.json()["message"]
    response = httpx.post(f"{served.url}/pause?mode=sleep", timeout=SECONDS)
    assert response.status_code == 400
    assert "mode must be one of abort, wait, keep" in response.json()["error"]["message"]
    assert answer(served) == before


def test_experts_of_tokens_are_told(served: Served, models: Models) -> None:
    """Whole and in a stream, the same, and those of transformers' gates."""
    body = {"return_token_ids": True, "return_routed_experts": True, "temperature": 0}
    (choice,) = post(served, "/v1/completions", prompt=PROMPT, max_tokens=8, **body)["choices"]
    whole = routed(choice)
    parts = [
        routed(event["choices"][0]) for event in stream(served, PROMPT, 8, ignore_eos=True, **body)
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    tokens = [*PROMPT, *choice["token_ids"]][:-1]
    right = gates_choose(models.old, tokens)
    assert np.array_equal(np.sort(whole), np.sort(right))
    many = {"prompt": [PROMPT] * 512, "n": 4, "max_tokens": CONTEXT - len(PROMPT), **body}
    response = httpx.post(f"{served.url}/v1/completions", json=many, timeout=SECONDS)
    assert response.status_code == 400
    assert "return_routed_experts of this many tokens" in response.json()["error"]["message"]


def test_experts_that_nobody_keeps_are_refused(models: Models) -> None:
    with serving(str(models.old), "--kv-cache-memory", "16MiB") as served:
        body = {"prompt": PROMPT, "return_routed_experts": True}
        response = httpx.post(f"{served.url}/v1/completions", json=body, timeout=SECONDS)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "return_routed_experts")
    assert "--enable-return-routed-experts" in error["message"]


def routed(choice: dict[str, Any]) -> NDArray[np.int16]:
    told = choice["routed_experts"]
    return np.frombuffer(b64decode(told["data"]), "<i2").reshape(told["shape"])


def gates_choose(folder: Path, tokens: list[int]) -> NDArray[np.int16]:
    """[tokens, layers, top_k] by transformers."""
    found: list[torch.Tensor] = []
    model = oracle(folder)
    for module in model.modules():
        if type(module).__name__ == "OlmoeTopKRouter":
            module.register_forward_hook(lambda module, given, out: found.append(out[-1]))
    with torch.no_grad():
        model(torch.tensor([tokens]))
    return torch.stack(found, 1).numpy().astype(np.int16)
