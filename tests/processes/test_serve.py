"""`megainfer serve` with real processes: answers, ends in order, and tells who died."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.checkpoints import Greedy, decisive, oracle, write_checkpoint
from tests.support.processes import shared_memory, shared_memory_left
from tests.support.prompts import LENGTHS, prompts_of
from tests.support.served import (
    CONTEXT,
    END_SECONDS,
    ENDLESS,
    Served,
    abstract_sockets,
    run_cli,
    serving,
    session_members,
    stream,
)

LASTING = 400  # tokens: longer than it takes to kill a process
WITH_TOKENS = {"temperature": 0, "logprobs": 0, "return_tokens_as_token_ids": True}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, list[list[int]], list[Greedy]]:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint("olmoe", "mha", folder, max_position_embeddings=CONTEXT)
    return folder, *decisive(oracle(folder), lambda seed: prompts_of(seed, LENGTHS[:6]), 12)


@pytest.fixture(scope="module")
def lasting(reference) -> Iterator[Served]:
    """One for all tests after which all of it serves again."""
    with serving(str(reference[0]), "--ffn-gpus", "2") as served:
        yield served


def completion(served: Served, prompt: list[int], tokens: int, **more) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)


def wait_until_gone(session: int) -> list[tuple[int, str]]:
    """What is left of a session after a bounded while; empty as soon as nothing is."""
    deadline = time.monotonic() + END_SECONDS
    while (left := session_members(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def tokens_of(events: Iterable[dict[str, Any]]) -> list[str]:
    return [token for e in events for c in e["choices"] for token in c["logprobs"]["tokens"]]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.05)


@pytest.mark.fresh
def test_it_serves_and_one_interrupt_ends_everything(reference):
    folder, prompts, _ = reference
    memory = shared_memory()
    with serving(str(folder), "--attn-gpus", "2", "--ffn-gpus", "2") as served:
        answers = [completion(served, prompt, 12) for prompt in prompts]
        assert all(answer.status_code == 200 for answer in answers)
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [12] * 6
        assert len(served.members()) == 6  # supervisor, server, four nodes
        # What forks must have no thread that could hold a lock at that moment.
        assert len(list(Path(f"/proc/{served.process.pid}/task").iterdir())) == 1
        assert httpx.get(f"{served.url}/health").status_code == 200
        sockets = served.sockets()
        assert sockets
        os.killpg(served.process.pid, signal.SIGINT)  # as a terminal does
        assert served.end() == 0
        assert served.members() == []
    assert not sockets & {name for _, name in abstract_sockets()}
    assert shared_memory_left(memory) == set()
    assert "on CPU: --attn-gpus and --ffn-gpus count processes" in served.output


def test_an_interrupt_ends_running_streams_with_an_error_event(reference):
    folder, prompts, _ = reference
    with serving(str(folder)) as served:
        events = stream(served, prompts[0], ENDLESS)
        next(events)
        os.killpg(served.process.pid, signal.SIGINT)
        rest = list(events)
        assert "shutting down" in rest[-1]["error"]["message"]
        assert served.end() == 0


def test_children_end_when_the_supervisor_is_killed(reference):
    folder, prompts, _ = reference
    with serving(str(folder), "--attn-gpus", "2") as served:
        assert completion(served, prompts[0], 2).status_code == 200
        sockets = served.sockets()
        assert sockets
        os.kill(served.process.pid, signal.SIGKILL)
        served.process.wait(END_SECONDS)
        assert wait_until_gone(served.process.pid) == []
    assert not sockets & {name for _, name in abstract_sockets()}


@pytest.mark.parametrize(
    ("victim", "name"),
    [("expert-1", "expert node 1"), ("attent-0", "attention node 0")],
)
def test_the_only_node_that_could_serve_is_waited_for_and_the_operator_is_told(
    reference, lasting, victim, name
):
    _, prompts, _ = reference
    expected = tokens_of(stream(lasting, prompts[0], LASTING, **WITH_TOKENS))
    events = stream(lasting, prompts[0], LASTING, **WITH_TOKENS)
    begun = tokens_of([next(events)])
    os.kill(lasting.node(victim), signal.SIGKILL)
    assert begun + tokens_of(events) == expected
    assert len(expected) == LASTING
    wait_for(lambda: f"{name} is back" in lasting.output)
    assert f"{name} died: killed by SIGKILL" in lasting.output


def test_an_api_server_that_dies_is_there_again_at_the_same_address(reference, lasting):
    _, prompts, _ = reference
    events = stream(lasting, prompts[0], ENDLESS)
    next(events)
    os.kill(lasting.node("server-0"), signal.SIGKILL)
    with pytest.raises(httpx.TransportError):
        list(events)
    # Who comes meanwhile waits: the port stays open.
    assert httpx.get(f"{lasting.url}/live", timeout=END_SECONDS).status_code == 200
    wait_for(lambda: httpx.get(f"{lasting.url}/health").status_code == 200)
    assert completion(lasting, prompts[0], 12).status_code == 200
    said = r"API server \(process \d+\) died: killed by SIGKILL; it is started again"
    assert re.search(said, lasting.output)


def test_names_host_and_colocated(reference):
    folder, prompts, _ = reference
    names = ("--served-model-name", "tiny", "--served-model-name", "alias")
    with serving(str(folder), "--colocated", "--host", "127.0.0.2", *names) as served:
        assert served.url.startswith("http://127.0.0.2:")
        cards = httpx.get(f"{served.url}/v1/models").json()["data"]
        assert [card["id"] for card in cards] == ["tiny", "alias"]
        assert completion(served, prompts[0], 4, model="alias").status_code == 200
        assert completion(served, prompts[0], 4, model="other").status_code == 404
        assert httpx.get(f"{served.url}/ready").status_code == 200
        assert "megainfer:expert_tokens_total" in httpx.get(f"{served.url}/metrics").text
        assert len(served.members()) == 3  # supervisor, server, one node


@pytest.mark.fresh
def test_an_interrupt_while_loading_ends_everything(reference):
    started = Served([str(reference[0])], until="loading libraries")
    try:
        os.killpg(started.process.pid, signal.SIGINT)
        assert started.end() == 0
        assert started.members() == []
        assert "Traceback" not in started.output
    finally:
        started.kill()


def test_a_dry_run_says_what_would_run_where_and_starts_nothing(reference):
    folder, _, _ = reference
    done = run_cli(
        "serve", str(folder), "--attn-gpus", "2", "--ffn-gpus", "3", "--micro-batches", "2",
        "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in ("OlmoeForCausalLM", "attention 1", "expert 2", "experts 6-7", "KV blocks", "M2N"):
        assert text in done.stdout
    assert "2 micro-batches" in done.stdout


def refused(*args: str) -> str:
    """What the command line says as it refuses; rich's line breaks are undone."""
    done = run_cli("serve", *args)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "loading" not in done.stdout, "it was refused only after processes had started"
    return " ".join(done.stderr.split())


def test_impossible_wishes_are_refused_before_anything_starts(reference, tmp_path):
    folder = str(reference[0])
    assert "9 expert nodes were asked for, but the model has 8 experts" in refused(
        folder, "--ffn-gpus", "9"
    )
    assert "--attn-gpus must be a whole number of at least 1, not 0" in refused(
        folder, "--attn-gpus", "0"
    )
    assert "--micro-batches must be auto or 1 to 8, not 9" in refused(
        folder, "--micro-batches", "9"
    )
    assert "not 'many'" in refused(folder, "--micro-batches", "many")
    assert (
        f"--max-model-len 9000 is more than the model's max_position_embeddings of {CONTEXT}"
        in refused(folder, "--max-model-len", "9000")
    )
    assert "use --max-model-len 32 or less" in refused(folder, "--kv-cache-memory", "40KiB")
    assert "'lots'" in refused(folder, "--kv-cache-memory", "lots")
    assert "need" in refused(folder, "--kv-cache-memory", "100TiB")
    assert "--dtype must be auto, float32 or bfloat16, not 'int3'" in refused(
        folder, "--dtype", "int3"
    )
    assert "holds no config.json" in refused(str(tmp_path))
    assert "/no/[/such]/model is neither a folder nor a hub id" in refused("/no/[/such]/model")
    missing = refused("megainfer-tests/no-such-model")
    assert "is no local folder, and fetching it from the hub failed" in missing


@pytest.mark.fresh
def test_a_port_in_use_is_refused(reference):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(str(reference[0]), "--port", str(port))
        assert message == refused(str(reference[0]), "--port", str(port), "--dry-run")
    assert f"can't listen on 127.0.0.1 port {port}" in message
    assert "--port" in message
    message = refused(str(reference[0]), "--port", "99999", "--dry-run")
    assert "--port must be from 0 (any free one) to 65535, not 99999" in message


def test_an_unsupported_architecture_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    message = refused(str(tmp_path))
    assert "GPT2LMHeadModel" in message
    assert "`megainfer models` lists all families" in message


def test_a_truncated_checkpoint_is_named(reference, tmp_path):
    for path in reference[0].iterdir():
        data = path.read_bytes()
        cut = path.suffix == ".safetensors"
        (tmp_path / path.name).write_bytes(data[: len(data) // 2] if cut else data)
    message = refused(str(tmp_path), "--port", "0")
    assert "model.safetensors is corrupt or truncated" in message
    assert message == refused(str(tmp_path), "--port", "0", "--dry-run")


def test_bad_requests_are_answered_and_harm_nobody(reference, lasting):
    _, prompts, _ = reference
    url_of = "{}/v1/completions".format
    long = completion(lasting, [5] * (CONTEXT + 44), 4)
    assert long.status_code == 400
    assert str(CONTEXT) in long.json()["error"]["message"]
    nan = httpx.post(
        url_of(lasting.url),
        content='{"prompt": [1], "temperature": NaN}',
        headers={"content-type": "application/json"},
    )
    assert nan.status_code == 400
    assert "NaN" in nan.json()["error"]["message"]
    typed = completion(lasting, prompts[0], 4, top_p="wide")
    assert typed.status_code == 400
    assert typed.json()["error"]["param"] == "top_p"
    outside = completion(lasting, [160], 4)
    assert outside.status_code == 400
    text = httpx.post(url_of(lasting.url), json={"prompt": "Hello"})
    assert text.status_code == 400
    assert "tokenizer" in text.json()["error"]["message"]
    assert completion(lasting, prompts[0], 4).status_code == 200
