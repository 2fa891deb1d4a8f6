"""The targets of fuzzing still fit what they are targets of: to run them takes minutes, and is for
`make test-all`."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = sorted((ROOT / "tests/fuzz").glob("*.cpp"))
INCLUDED = ("megainfer/native", "megainfer/m2n/native", "megainfer/compute/cpu/native")


@pytest.mark.skipif(shutil.which("g++") is None, reason="M2N is not built")
@pytest.mark.parametrize("target", TARGETS, ids=lambda path: path.stem)
def test_a_target_is_written_for_the_code_that_there_is(target: Path) -> None:
    folders = [f"-I{ROOT / folder}" for folder in INCLUDED]
    done = subprocess.run(
        ["g++", "-std=c++20", "-fsyntax-only", *folders, str(target)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
