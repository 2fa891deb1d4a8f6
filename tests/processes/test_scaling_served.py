"""Nodes come, go and are started anew under load: every stream has the tokens it would have had."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.served import CONTEXT, Served, run_cli, serving, stream

STREAMS = 3
TOKENS = 1500
CHANGE_SECONDS = 120.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint("olmoe", "mha", folder, max_position_embeddings=CONTEXT)
    with serving(str(folder), "--kv-cache-memory", "64MiB") as served:
        yield served


def tokens_of(served: Served, number: int, into: list[Any]) -> None:
    prompt = [number + 1] * 5
    for event in stream(served, prompt, TOKENS):
        assert "error" not in event, event
        into.append(event["choices"][0]["text"])


def change(served: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, timeout=CHANGE_SECONDS)


def present(served: Served) -> list[str]:
    """Names of the processes of nodes."""
    return sorted(name for _, name in served.members() if "attent" in name or "expert" in name)


def test_streams_go_on_through_every_change(served: Served) -> None:
    undisturbed: list[list[Any]] = [[] for _ in range(STREAMS)]
    for number, texts in enumerate(undisturbed):
        tokens_of(served, number, texts)

    answers: list[list[Any]] = [[] for _ in range(STREAMS)]
    asking = [
        threading.Thread(target=tokens_of, args=(served, number, texts))
        for number, texts in enumerate(answers)
    ]
    for thread in asking:
        thread.start()
    for path, body, attention, experts in (
        ("/admin/scale", {"attn": 3, "ffn": 2}, [0, 1, 2], [0, 1]),
        ("/admin/drain", {"node": "attention-0"}, [1, 2], [0, 1]),
        ("/admin/restart", {"node": "expert node 1"}, [1, 2], [0, 1]),
        ("/admin/scale", {"attn": 1, "ffn": 1}, [1], [0]),
    ):
        done = change(served, path, body)
        assert done.status_code == 200, done.text
        assert (done.json()["attention"], done.json()["experts"]) == (attention, experts)
    for thread in asking:
        thread.join(CHANGE_SECONDS)
    assert answers == undisturbed

    told = httpx.get(f"{served.url}/admin/nodes", timeout=20).json()
    assert [node["name"] for node in told["nodes"]] == ["attention node 1", "expert node 0"]
    assert present(served) == ["mega-attent-1", "mega-expert-0"]


def test_the_commands_do_the_same(served: Served) -> None:
    scaled = run_cli("scale", "--attn", "2", "--url", served.url)
    assert scaled.returncode == 0, scaled.stderr
    assert "attention nodes [0, 1] and expert nodes [0] serve" in scaled.stdout
    listed = run_cli("nodes", "--url", served.url)
    assert "attention-1" in listed.stdout
    assert listed.stdout.count("serving") == 3
    drained = run_cli("drain", "attention-0", "--url", served.url)
    assert "attention nodes [1] and expert nodes [0] serve" in drained.stdout
    refused = run_cli("drain", "attention-1", "--url", served.url)
    assert refused.returncode == 2
    assert "attention node 1 is the last of its role; it stays" in refused.stderr


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/admin/scale", {}, "attn or ffn is needed"),
        ("/admin/scale", {"attn": 0}, "attn"),
        ("/admin/scale", {"ffn": 2**70}, "ffn"),
        ("/admin/scale", {"ffn": 9}, "--ffn must be 1 to 8, not 9"),
        ("/admin/drain", {"node": "server-0"}, "no node is called 'server-0'"),
        ("/admin/restart", {"node": "expert-7"}, "there is no expert node 7"),
    ],
)
def test_what_can_not_be_is_refused(
    served: Served, path: str, body: dict[str, Any], reason: str
) -> None:
    answer = change(served, path, body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
