"""Kernels compiled for GPUs that aren't here: good enough, and as the page says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernels-gpu.md"
TOOL = ROOT / "benchmarks" / "kernel_table.py"
LIMITS = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_table", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """Rows, and the table as it is written; in a process whose kernels aren't interpreted."""
    into = folder / "rows.json"
    done = subprocess.run(
        [sys.executable, TOOL, *options, "--json", into],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(into.read_text()), done.stdout


def assert_good(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        needs = row["resources"]
        assert needs["spills"] == 0, row
        assert needs["shared"] <= LIMITS[row["architecture"]], row
        assert needs["pipelined"] or not needs["loops"], row
    assert {row["architecture"] for row in rows} == {*LIMITS}


def test_the_table_is_of_these_sources(tool):
    told = tool.sources_of(PAGE.read_text())
    assert told == tool.fingerprint(), (
        "kernels have changed since docs/kernels-gpu.md was written: "
        "python benchmarks/kernel_table.py --write docs/kernels-gpu.md"
    )


@pytest.mark.timeout(600)
def test_a_models_kernels_are_good_enough(tmp_path):
    rows, _ = compiled(tmp_path, "--models", "gpt-oss-120b")
    assert_good(rows)
    loops = {row["kernel"] for row in rows if row["resources"]["loops"]}
    assert {"attend", "grouped_product"} <= loops


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_variant_needs_what_the_table_says(tmp_path):
    rows, table = compiled(tmp_path)
    assert_good(rows)
    assert table.strip() in PAGE.read_text()
