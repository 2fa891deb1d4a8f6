"""`bench`, `complete` and `chat` as their users have them: real processes, a real small model."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from megainfer.messages.requests import Submit
from tests.support.checkpoints import write_checkpoint
from tests.support.forked import Files, start
from tests.support.scripted_server import RunningServer, endless, write_tokenizer
from tests.support.served import Served, run_cli, serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"), vocab_size=400)
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Served]:
    with serving(str(model), "--served-model-name", "tiny") as server:
        yield server


def value(output: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} +([\d.]+) *$", output, re.MULTILINE)
    assert found, output
    return float(found[1])


def test_bench_serve_measures_a_running_server(served: Served, tmp_path: Path) -> None:
    done = run_cli(
        *("bench", "serve", "--base-url", served.url, "--num-prompts", "6"),
        *("--input-len", "12", "--random-prefix-len", "4", "--output-len", "5", "--ignore-eos"),
        *("--request-rate", "200", "--max-concurrency", "3", "--num-warmups", "1"),
        *("--goodput", "ttft:60000,e2el:60000", "--num-gpus", "4", "--seed", "3"),
        *("--metric-percentiles", "50,99.5", "--plot", str(tmp_path / "plots")),
        *("--save-detailed", "--result-filename", "r.json", "--result-dir", str(tmp_path)),
        *("--metadata", "build=7"),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert value(done.stdout, "Successful requests:") == 6
    assert value(done.stdout, "Failed requests:") == 0
    assert value(done.stdout, "Total input tokens:") == 6 * 16
    assert value(done.stdout, "Total generated tokens:") == 6 * 5
    rate = value(done.stdout, "Output token throughput (tok/s):")
    assert value(done.stdout, "Output throughput per GPU (tok/s):") == pytest.approx(
        rate / 4, abs=0.01
    )
    assert value(done.stdout, "Request goodput (req/s):") == value(
        done.stdout, "Request throughput (req/s):"
    )
    assert value(done.stdout, "P99.5 TTFT (ms):") > 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["build"] == "7"
    assert document["model_id"] == "tiny"
    assert document["output_lens"] == [5] * 6
    assert all(len(gaps) == 4 for gaps in document["itls"])
    pictures = {path.name for path in (tmp_path / "plots").iterdir()}
    assert pictures == {"timeline.png", "latencies.png"}


def test_bench_serve_asks_prompts_of_a_file_by_chat(
    served: Served, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Hello"}\n{"prompt": "World", "output_tokens": 2}\n')
    done = run_cli(
        *("bench", "serve", "--base-url", served.url, "--backend", "openai-chat"),
        *("--dataset-name", "custom", "--dataset-path", str(file), "--custom-output-len", "3"),
        *("--num-prompts", "4", "--ignore-eos", "--tokenizer", str(model)),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert value(done.stdout, "Total generated tokens:") == 2 * (3 + 2)
    # As the server says: a node of each role, and no GPU.
    assert value(done.stdout, "Nodes (CPU processes):") == 2
    assert "GPU" not in done.stdout


def test_bench_serve_counts_failures_and_says_the_first(served: Served) -> None:
    done = run_cli(
        *("bench", "serve", "--base-url", served.url, "--model", "other"),
        *("--num-prompts", "2", "--input-len", "4", "--output-len", "2"),
    )
    assert done.returncode == 1
    assert value(done.stdout, "Failed requests:") == 2
    assert "First of 2 failures: MegaInferError: HTTP 404" in done.stdout


def test_bench_serve_without_a_server_says_so() -> None:
    done = run_cli("bench", "serve", "--port", "1", "--num-prompts", "1")
    assert done.returncode == 2
    assert "no server answers at http://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_prints_what_was_measured(tmp_path: Path) -> None:
    with RunningServer(None) as server:
        server.node.script = endless(1)
        command = ["bench", "serve", "--base-url", server.url, "--num-prompts", "2"]
        told = tmp_path / "told"
        with told.open("wb") as file:
            files = Files(file.fileno(), file.fileno())
            running = start("megainfer", [*command, "--input-len", "4"], files, os.environ)
        for _ in range(2):
            server.node.expect(Submit)
        running.send_signal(signal.SIGINT)
        status, out = running.wait(30), told.read_text()
    assert status == 130, out
    assert value(out, "Unfinished requests:") == 2
    assert value(out, "Successful requests:") == 0


def test_a_quick_question_and_a_completion(served: Served) -> None:
    common = ("--url", served.url, "--max-tokens", "4", "--temperature", "0")
    for command in ("complete", "chat"):
        done = run_cli(command, "-q", "Hello", *common)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("\n")


def test_offline_latency_and_throughput(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    own = ("--model", str(model), "--colocated", "--output-json", str(out))
    done = run_cli(
        *("bench", "latency", *own, "--input-len", "8", "--output-len", "4"),
        *("--batch-size", "2", "--num-iters", "3", "--num-iters-warmup", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "Avg latency: " in done.stdout
    assert "99% percentile latency: " in done.stdout
    document = json.loads(out.read_text())
    assert len(document["latencies"]) == 3
    assert document["avg_latency"] == pytest.approx(sum(document["latencies"]) / 3)
    done = run_cli("bench", "throughput", *own, "--num-prompts", "4", "--output-len", "3")
    assert done.returncode == 2, "prompts of 1024 tokens are too long for this model"
    done = run_cli(
        *("bench", "throughput", *own, "--num-prompts", "4"),
        *("--input-len", "8", "--output-len", "3"),
    )
    assert done.returncode == 0, done.stderr
    assert "Total num output tokens:  12" in done.stdout
    assert json.loads(out.read_text())["total_num_tokens"] == 4 * 11
