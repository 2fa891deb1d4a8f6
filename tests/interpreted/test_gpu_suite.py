"""The suite for GPUs, tried without one: tiny sizes, interpreted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from tests.support.instruments import run

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "benchmarks" / "gpu_suite.py"
# What the machine with a GPU hasn't got, from which the suite runs without an installation.
ABSENT = ("msgspec", "zmq", "llguidance", "fastapi", "uvicorn", "pydantic", "transformers", "rich")
SECTIONS = (
    *("probes", "graphs", "colocated", "instances", "experts", "attention"),
    *("tuning", "kernels", "reads", "nccl", "questions"),
)


def environment_of(folder: Path) -> dict[str, str]:
    """In which the packages of ABSENT can't be imported."""
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is absent')")
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def suite(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SUITE, *options]
    return subprocess.run(command, env=environment_of(folder), capture_output=True, text=True)


def found_by(folder: Path, *options: str) -> dict[str, Any]:
    file = folder / "found.json"
    done = suite(folder, "--dry", "--json", str(file), *options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(file.read_text()))


def test_sections_run_without_what_the_machine_has_not(tmp_path):
    report = found_by(tmp_path, "--only", "probes", "attention", "questions", "--budget", "600")
    assert report["dry"]
    assert report["machine"]["versions"]["triton"]
    assert {s["status"] for s in report["sections"].values()} == {"done"}, report
    attention = report["sections"]["attention"]["found"]
    assert all(row["seconds"] > 0 for rows in attention.values() for row in rows.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_section_runs(tmp_path):
    report = found_by(tmp_path, "--budget", "1800")
    assert tuple(report["sections"]) == SECTIONS
    assert {s["status"] for s in report["sections"].values()} == {"done"}, report
    found = {name: section["found"] for name, section in report["sections"].items()}
    for errors in found["kernels"].values():
        assert errors["kernels"] < 1e-4, errors
    recorded = {**found["graphs"], **found["graphs"].pop("experts")}
    assert all(own["equal"] for name, own in recorded.items() if name != "experts"), recorded


def test_what_has_no_time_left_is_told(tmp_path):
    file = tmp_path / "found.json"
    options = ("--dry", "--json", file, "--only", "probes", "--budget", "0")
    assert run("gpu_suite.py", *options).returncode == 0
    report = json.loads(file.read_text())
    assert report["sections"]["probes"]["status"] == "left out"


def test_what_a_section_has_found_is_written_when_all_is_told_to_end(tmp_path):
    file, folder = tmp_path / "found.json", tmp_path / "tmp"
    folder.mkdir()
    options = ("--dry", "--json", file, "--only", "reads", "questions")
    process = subprocess.Popen(
        [sys.executable, SUITE, *options],
        env={**environment_of(tmp_path), "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not [*folder.glob("*/found.json")]:
            assert process.poll() is None
            sleep(0.05)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    sections = json.loads(file.read_text())["sections"]
    assert sections["reads"]["status"] == "told to end"
    assert sections["reads"]["found"]
    assert sections["questions"] == {"status": "left out", "why": "it was told to end"}
    assert not [*folder.iterdir()]


def test_without_a_gpu_it_says_so(tmp_path):
    done = run("gpu_suite.py", "--json", tmp_path / "found.json")
    assert done.returncode == 1
    assert "torch finds no GPU here" in done.stderr


def test_the_list_names_every_section():
    listed = run("gpu_suite.py", "--list").stdout
    assert tuple(line.split()[0] for line in listed.splitlines()) == SECTIONS
