"""A server that knows what to expect of its hardware, while it has work, and what it is told."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from megainfer.planner.hardware import to_toml
from tests.support.calibrated import devices
from tests.support.checkpoints import write_checkpoint
from tests.support.served import CONTEXT, ENDLESS, Served, run_cli, serving

WAIT_SECONDS = 60.0
SAID = ("--attn-gpus", "1", "--ffn-gpus", "1", "--micro-batches", "1", "--device", "cpu")
FAMILIES = ("measured_seconds", "predicted_seconds", "predicted_drift_ratio")
TERMS = {"attention", "experts", "outside", "token"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_checkpoint("olmoe", "mha", folder, max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hardware") / "here.toml"
    cores = max(2, len(os.sched_getaffinity(0)))
    path.write_text(to_toml(devices(cores=cores).values()))
    return path


@pytest.fixture(scope="module")
def served(folder: Path, hardware: Path) -> Iterator[Served]:
    with serving(str(folder), *SAID, "--hardware", str(hardware)) as served:
        yield served


@contextmanager
def generating(served: Served) -> Iterator[None]:
    """Four answers that last as long as this does."""
    ended = threading.Event()

    def ask() -> None:
        body = {"prompt": [1, 2], "max_tokens": ENDLESS, "ignore_eos": True, "stream": True}
        url = f"{served.url}/v1/completions"
        while not ended.is_set():
            with httpx.stream("POST", url, json=body, timeout=WAIT_SECONDS) as response:
                for _ in response.iter_lines():
                    if ended.is_set():
                        return

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in asking:
            thread.join(WAIT_SECONDS)


def terms(served: Served) -> dict[str, dict[str, float]]:
    """Family -> term -> value, of one look."""
    text = httpx.get(f"{served.url}/metrics", timeout=WAIT_SECONDS).text
    return {
        family.name.removeprefix("megainfer:"): {s.labels["term"]: s.value for s in family.samples}
        for family in text_string_to_metric_families(text)
        if family.name.removeprefix("megainfer:") in FAMILIES
    }


def test_terms_are_told_beside_what_is_expected(served: Served) -> None:
    with generating(served):
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := terms(served))["predicted_seconds"].keys() >= TERMS:
            assert time.monotonic() < deadline, f"only {found} is told"
            time.sleep(0.1)  # asked again, until the deadline
    assert all(found[family].keys() >= TERMS for family in FAMILIES)
    for term, ratio in found["predicted_drift_ratio"].items():
        measured, predicted = (
            found[f"{which}_seconds"][term] for which in ("measured", "predicted")
        )
        assert ratio == pytest.approx(measured / predicted)


def test_plans_are_made_of_what_it_measures(served: Served) -> None:
    with generating(served):
        told = run_cli("plan", "--from", served.url, "--seconds", "2", timeout=WAIT_SECONDS)
    assert told.returncode == 0, told.stderr
    assert "1 attention node, 1 expert node, 1 micro-batch of" in told.stdout
    assert "a layer takes T_a" in told.stdout


def test_hardware_of_other_nodes_is_refused_at_once(folder: Path, hardware: Path) -> None:
    options = (*SAID, "--hardware", str(hardware), "--hardware-name", "elsewhere", "--dry-run")
    told = run_cli("serve", str(folder), *options)
    assert told.returncode == 2
    assert "no device elsewhere-" in told.stderr
    assert "megainfer calibrate" in told.stderr
