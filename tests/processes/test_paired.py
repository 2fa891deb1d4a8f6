"""Paired rounds of two checkouts, run as a user does.

Programs stand in for benchmarks: they tell fixed times, so what follows can be computed by hand.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# Tells its n-th time of those given, and writes down whose turn it was.
PROGRAM = """
import json, sys
from pathlib import Path
side = Path.cwd().name
turns = Path("../turns").read_text().split() if Path("../turns").exists() else []
Path("../turns").write_text(" ".join([*turns, side]))
times = json.loads(Path("times.json").read_text())
if not times:
    sys.exit("no times are left")
ms = times[turns.count(side) % len(times)]
path = Path(sys.argv[sys.argv.index("--json") + 1])
path.write_text(json.dumps({"hardware": "none", "results": [{"rows": 1, "ms": ms}]}))
"""


def compare(
    folder: Path, old: list[float], new: list[float], *options: str
) -> subprocess.CompletedProcess[str]:
    for side, times in (("old", old), ("new", new)):
        (folder / side).mkdir()
        (folder / side / "bench.py").write_text(PROGRAM)
        (folder / side / "times.json").write_text(json.dumps(times))
    command = [sys.executable, ROOT / "benchmarks" / "paired.py", folder / "old", folder / "new"]
    options = (*options, "--json", str(folder / "out.json"), "--", "bench.py")
    return subprocess.run(
        [*map(str, command), *options], capture_output=True, text=True, timeout=60, cwd=folder
    )


def row_of(folder: Path) -> dict[str, Any]:
    (row,) = json.loads((folder / "out.json").read_text())["results"]
    assert isinstance(row, dict)
    return row


def test_a_slower_checkout_is_found_and_takes_turns_in_going_first(tmp_path: Path) -> None:
    done = compare(tmp_path, [10.0], [12.5], "--min-rounds", "3")
    assert done.returncode == 1, done.stderr
    row = row_of(tmp_path)
    assert row["figure"] == "results/0/ms"
    assert row["verdict"] == "below 0.98 wholly"
    assert row["ratio"] == row["low"] == row["high"] == pytest.approx(0.8)
    # Three rounds would do, but then old would have gone first once more than new.
    assert (tmp_path / "turns").read_text().split() == ["old", "new", "new", "old"] * 2
    assert "below 0.98 wholly" in done.stdout


def test_rounds_go_on_while_the_interval_is_wide(tmp_path: Path) -> None:
    noisy = [10.0, 11.0, 10.0, 9.0]
    done = compare(tmp_path, [10.0], noisy, "--min-rounds", "2", "--max-rounds", "5")
    assert done.returncode == 0, done.stderr
    row = row_of(tmp_path)
    assert row["verdict"] == "undecided"
    assert row["ratios"] == [10 / time for time in (10, 11, 10, 9, 10)]
    assert row["low"] < 0.98 < row["mean"] < row["high"]


def test_a_run_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    done = compare(tmp_path, [10.0], [])
    assert done.returncode == 2
    assert f"{tmp_path / 'new'}: ended with 1\nno times are left" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "give a command after --"),
        (["a", "b", "--", "bench.py", "--json", "x"], "leave --json out of the command"),
        (["a", "b", "--max-rounds", "1", "--", "bench.py"], "takes at least 2"),
    ],
)
def test_what_it_refuses(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "paired.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
