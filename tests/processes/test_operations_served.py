"""What `megainfer serve` tells of real nodes: that they hang, that they work, and what they do."""

import json
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from tests.support.checkpoints import write_checkpoint
from tests.support.served import CONTEXT, ENDLESS, Served, run_cli, serving, stream

WAIT_SECONDS = 30.0
DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/megainfer.json"
METRICS_PAGE = DASHBOARD.parents[2] / "docs/metrics.md"
ADMIN = {"Authorization": "Bearer of-the-admin"}
LONG = {"prompt": [1, 2], "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_checkpoint("olmoe", "mha", folder, max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    nodes = ("--attn-gpus", "2", "--ffn-gpus", "2", "--micro-batches", "2")
    telling = ("--health-timeout", "3", "--log-interval", "0.5", "--admin-key", "of-the-admin")
    names = ("--served-model-name", "tiny")
    with serving(str(folder), *nodes, *telling, *names) as served:
        yield served


def get(served: Served, path: str, timeout: float = WAIT_SECONDS) -> httpx.Response:
    return httpx.get(served.url + path, headers=ADMIN, timeout=timeout)


def complete(served: Served, **more: object) -> httpx.Response:
    body = {"prompt": [1, 2, 3], "max_tokens": 20, "ignore_eos": True, **more}
    url = f"{served.url}/v1/completions"
    return httpx.post(url, json=body, headers=ADMIN, timeout=WAIT_SECONDS)


def until(seen: Callable[[], bool]) -> float:
    """Seconds until it was seen, at most WAIT_SECONDS."""
    started = time.monotonic()
    while not seen():
        assert time.monotonic() - started < WAIT_SECONDS, "it was never seen"
        time.sleep(0.02)
    return time.monotonic() - started


def test_ready_means_that_a_token_has_been_everywhere(served: Served) -> None:
    assert get(served, "/health").status_code == 200
    ready = get(served, "/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ok"})
    nodes = get(served, "/debug/nodes").json()
    assert len(nodes) == 4


@pytest.mark.parametrize(
    ("victim", "name"), [("expert-1", "expert node 1"), ("attent-0", "attention node 0")]
)
def test_a_node_that_hangs_is_named_and_replaced(served: Served, victim: str, name: str) -> None:
    pid = served.node(victim)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: f"{name} is back after" in served.output)
    assert f"{name} (process {pid}) hangs: it has not shown any life" in served.output
    assert served.node(victim) != pid
    until(lambda: get(served, "/health").json() == {"status": "ok"})
    nodes = get(served, "/admin/nodes").json()["nodes"]
    assert [node["restarts"] for node in nodes if node["name"] == name] == [1]
    assert complete(served).status_code == 200


def test_metrics_tell_of_both_roles_and_the_dashboard_asks_for_nothing_else(
    served: Served,
) -> None:
    answers = [complete(served, n=2, prompt=[seed] * 5) for seed in range(1, 9)]
    assert all(answer.status_code == 200 for answer in answers)

    # Three layers and three experts a token; of each answer's, all but the last go through them.
    computed = 8 * 2 * (5 + 20 - 1) * 3 * 3

    def told() -> bool:
        nodes = get(served, "/debug/nodes").json().values()
        layers = [layer for node in nodes for layer in node.get("expert_tokens", [])]
        generated = sum(node.get("generated_tokens", 0) for node in nodes)
        return sum(sum(layer.values()) for layer in layers) >= computed and generated >= 8 * 2 * 20

    until(told)
    families = {f.name: f for f in text_string_to_metric_families(get(served, "/metrics").text)}
    rows = {sample.name for family in families.values() for sample in family.samples}
    text = DASHBOARD.read_text()
    assert set(re.findall(r"megainfer:\w+", text)) <= rows
    assert json.loads(text)["title"] == "MegaInfer"
    described = METRICS_PAGE.read_text()
    own = [name.removeprefix("megainfer:") for name in families if name.startswith("megainfer:")]
    assert [name for name in own if f"`{name}" not in described] == []

    def values(family: str, *labels: str) -> dict[tuple[str, ...], float]:
        own = families[f"megainfer:{family}"].samples
        return {tuple(s.labels[label] for label in labels): s.value for s in own}

    assert set(values("node_up", "role", "node").values()) == {1}
    startup = {stage: seconds for (stage,), seconds in values("startup_seconds", "stage").items()}
    assert list(startup) == ["model", "libraries", "weights", "connecting"]
    assert get(served, "/server_info").json()["startup_seconds"] == startup
    (ready,) = [line for line in served.output.splitlines() if line.startswith("Ready in")]
    shown = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in startup.items())
    assert ready.startswith(f"Ready in {sum(startup.values()):.1f} s ({shown}) at http")
    stages = values("node_stage_seconds", "role", "node", "stage")
    for stage in (("attention", "1", "attention"), ("attention", "0", "dispatch")):
        assert stages[stage] > 0
    assert stages["expert", "0", "expert"] > 0
    tokens = values("expert_tokens", "node", "expert")
    assert {expert for _, expert in tokens} == {str(expert) for expert in range(8)}
    assert {expert for node, expert in tokens if node == "1"} == {"4", "5", "6", "7"}
    assert sum(values("generation_tokens", "engine").values()) >= 8 * 2 * 20
    assert sum(tokens.values()) >= computed
    assert all(ratio >= 1 for ratio in values("expert_load_imbalance", "layer").values())
    assert values("micro_batches", "engine") == {("0",): 2, ("1",): 2}
    batches = families["megainfer:expert_batch_rows"].samples
    assert any(sample.name.endswith("_count") and sample.value > 0 for sample in batches)


def test_a_line_in_the_log_tells_of_traffic(served: Served) -> None:
    assert complete(served).status_code == 200
    until(lambda: bool(re.search(r"INFO prompts [\d.]+ tokens/s, generation [1-9]", served.output)))
    assert "of-the-admin" not in served.output


@contextmanager
def traffic(served: Served) -> Iterator[None]:
    """One request after the other, while it lasts."""
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            complete(served, n=8, max_tokens=100)

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(keep_asking)
        try:
            yield
        finally:
            done.set()
    asking.result()


def test_a_trace_shows_what_every_node_did(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    record = ("trace", "--url", served.url, "--seconds", "0.3", "--output", str(path))
    with traffic(served):
        done = run_cli(*record, "--admin-key", "of-the-admin")
    assert done.returncode == 0, done.stderr
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(names.values()) == [
        f"tiny: {role} node {node}" for role in ("attention", "expert") for node in (0, 1)
    ]
    kinds = {(names[e["pid"]], e["cat"]) for e in events if e["ph"] == "X"}
    assert {("tiny: attention node 0", "attention"), ("tiny: expert node 1", "expert")} <= kinds
    assert all(0 <= e["ts"] < 5e6 for e in events if e["ph"] == "X")
    refused = run_cli(*record)
    assert refused.returncode == 2
    assert "asks for a key" in refused.stderr


def test_a_termination_lets_streams_finish(folder: Path, tmp_path: Path) -> None:
    """Over TLS, which is otherwise the same."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    with (
        serving(str(folder), *tls, "--drain-timeout", "100") as served,
        httpx.Client(base_url=served.url, verify=context, timeout=WAIT_SECONDS) as http,
    ):
        assert served.url.startswith("https://")
        lasting = {**LONG, "max_tokens": 3000, "stream": True}
        with http.stream("POST", "/v1/completions", json=lasting) as response:
            lines = response.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            until(lambda: http.get("/health").status_code == 503)
            assert http.get("/live").status_code == 200
            late = http.post("/v1/completions", json=LONG)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
            assert "draining" in served.output
            rest = [line for line in lines if line]
        assert '"finish_reason":"length"' in rest[-2]
        assert served.end() == 0
        assert served.members() == []


def test_a_second_signal_ends_it_at_once_and_a_full_queue_is_left_in_time(folder: Path) -> None:
    limits = ("--max-num-seqs", "1", "--queue-timeout", "0.1", "--max-queued-requests", "1")
    with serving(str(folder), *limits) as served:
        events = stream(served, [1, 2], ENDLESS)
        next(events)
        late = complete(served)
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert "has waited for its turn" in late.json()["error"]["message"]
        more = complete(served, n=2)
        assert (more.status_code, more.json()["error"]["code"]) == (503, "overloaded")
        served.process.send_signal(signal.SIGTERM)
        until(lambda: "draining" in served.output)
        served.process.send_signal(signal.SIGTERM)
        assert "shutting down" in list(events)[-1]["error"]["message"]
        assert served.end() == 0
        assert served.members() == []
