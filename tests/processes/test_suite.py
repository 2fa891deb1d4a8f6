"""What tests/conftest.py promises: a run in which something went unnoticed fails."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.skips import may_skip
from tests.support.spread import spread

ROOT = Path(__file__).parents[2]
NO_BROWSER = "no browser: neither"

SKIPPED = "import pytest\ndef test_it(): pytest.skip({reason!r})\n"
LEFT = """
import subprocess
from tests.support import processes
processes.END_SECONDS = 0.2
def test_it():
    script = "sleep 1000 >/dev/null 2>&1 & echo $! >{path}"
    subprocess.run(["sh", "-c", script], check=True)
"""


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """pytest over this one test, under the suite's own conftest."""
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(folder)]
    command += ["-p", "no:langsmith_plugin", "-p", "no:schemathesis"]  # as pyproject.toml has it
    return subprocess.run(
        [*command, "test_it.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


def test_a_skip_that_nobody_allowed_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPPED.format(reason="I felt like it"))
    assert done.returncode == 1
    assert "SKIPPED UNEXPECTEDLY test_it.py::test_it: I felt like it" in done.stdout


def test_what_a_machine_lacks_is_allowed_unless_it_is_said_to_be_whole() -> None:
    assert may_skip(NO_BROWSER, whole_machine=False)
    assert not may_skip(NO_BROWSER, whole_machine=True)
    assert may_skip("only root can become another user", whole_machine=True)


def test_files_of_both_kinds_come_evenly_mixed_and_whole() -> None:
    items = [*("P1a", "P1b", "P2a"), *("L1a", "L2a", "L2b", "L3a", "L4a")]
    mixed = spread(items, lambda item: item[:2], lambda group: group[0] == "P")
    assert mixed == ["L1a", "P1a", "P1b", "L2a", "L2b", "L3a", "P2a", "L4a"]
    assert spread([], lambda item: item, bool) == []


def test_a_process_that_is_left_behind_fails_the_run(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    done = run(tmp_path, LEFT.format(path=path))
    os.kill(int(path.read_text()), 9)
    assert done.returncode == 1
    assert "tests have left processes behind" in done.stdout
