"""Kernels compiled for GPUs that aren't here: good enough, and as the page says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megainfer.compute.gpu.formats.registry import FORMATS
from tests.support.checkpoints import VARIANTS
from tests.support.kernels_launched import kernels_launched

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernels-gpu.md"
TOOL = ROOT / "benchmarks" / "kernel_table.py"
FAMILY_PARTS = 6
SPILLING = [
    ("score_rows", "Qwen3-30B-A3B, decode", 80),
    ("grouped_product", "Qwen3-30B-A3B, prompt, int4_128", 80),
    ("score_rows", "Qwen3-30B-A3B, decode", 90),
    ("grouped_product", "gpt-oss-120b, decode, mxfp4", 90),
    ("grouped_product", "gpt-oss-120b, prompt", 100),
]
"""With Triton 3.7.1; with 3.6.0 nothing is."""
LIMITS = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_table", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(folder: Path, *options: str, before: str = "") -> tuple[list[dict[str, Any]], str]:
    """Rows, and the table as it is written; in a process whose kernels aren't interpreted. before:
    a folder in which packages are looked for first."""
    into = folder / "rows.json"
    done = subprocess.run(
        [sys.executable, TOOL, *options, "--json", into],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (before, str(ROOT))))},
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


def test_the_tables_are_of_these_sources(tool):
    told, now = tool.sources_of(PAGE.read_text()), tool.fingerprint()
    assert told == {"3.6.0": now, "3.7.1": now}, (
        "kernels have changed since docs/kernels-gpu.md was written: "
        "python benchmarks/kernel_table.py --write docs/kernels-gpu.md, first with the Triton that "
        "tests use, then with the other one, as the tool says"
    )


def test_the_table_has_every_kernel(tool):
    table = tool.table_of(PAGE.read_text(), "3.6.0")
    told = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert told == {name.strip("_") for name in kernels_launched()}


def test_the_table_has_every_format_of_experts(tool):
    """Each by its codes, how many share a scale, and how many are packed."""
    table = tool.table_of(PAGE.read_text(), "3.6.0")
    for known in FORMATS.values():
        if known.codes is torch.float32:
            continue  # which no GPU computes with by wish
        code = {torch.int8: "int8", torch.uint8: "uint8"}.get(known.codes, "bf16")
        wanted = rf"CODE={code}\b.* FORMAT={known.kind}, SCALE_ROWS={max(known.rows, 1)}, "
        wanted += rf"GROUP={known.group}, PACKED={known.packed}\b"
        assert re.search(wanted, table), known.name


def test_another_versions_table_is_what_differs(tool):
    page = "".join(
        f"text\n{tool.BEGIN.format(v)}{tool.SOURCES.format('0')}old\n{tool.END}\n"
        for v in ("3.6.0", "3.7.1")
    )
    main = "| kernel |\n| --- |\n| a 1 |\n| b 2 |"
    page = tool.with_table(page, main, "3.6.0")
    other = tool.differing("| kernel |\n| --- |\n| a 1 |\n| b 3 |", tool.table_of(page, "3.6.0"))
    assert other == "| kernel |\n| --- |\n| b 3 |"
    page = tool.with_table(page, other, "3.7.1")
    assert tool.table_of(page, "3.6.0") == main
    assert tool.table_of(page, "3.7.1") == other
    assert tool.sources_of(page) == dict.fromkeys(("3.6.0", "3.7.1"), tool.fingerprint())
    with pytest.raises(SystemExit, match=r"no place for a table of Triton 3\.9"):
        tool.with_table(page, main, "3.9.0")


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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_with_the_other_triton_every_variant_needs_what_its_table_says(tmp_path, tool):
    """Which lies in a folder that MEGAINFER_TRITON_3_7_1 names, since no torch for the CPU has one
    and only one can be installed."""
    folder = os.environ.get("MEGAINFER_TRITON_3_7_1")
    if not folder:
        pytest.skip("MEGAINFER_TRITON_3_7_1 names no folder with triton==3.7.1")
    rows, table = compiled(tmp_path, before=folder)
    spilling = [row for row in rows if row["resources"]["spills"]]
    told = [(row["kernel"], row["first"], row["architecture"]) for row in spilling]
    assert told == SPILLING, "as the page says"
    assert_good([row for row in rows if row not in spilling])
    page = PAGE.read_text()
    assert tool.differing(table.strip(), tool.table_of(page, "3.6.0")) == tool.table_of(
        page, "3.7.1"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(FAMILY_PARTS))
def test_what_every_family_launches_compiles(part):
    """Whatever a model has of norms, gates, attention: what the interpreter runs may be no Triton
    that compiles."""
    names = ["-".join(variant) for variant in VARIANTS[part::FAMILY_PARTS]]
    paths = (ROOT, ROOT / "benchmarks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled_families", "90", *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 10 * len(names)
