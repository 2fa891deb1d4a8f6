"""The native code under sanitizers: its tests, and inputs that nobody chose."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FUZZ_SECONDS = 20
TARGETS = [
    path.stem for path in sorted((ROOT / "tests/fuzz").glob("*.cpp")) if path.stem != "driver"
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("g++") is None, reason="M2N is not built"),
]


def check(*command: str | Path) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def test_the_tests_of_the_native_code_pass_under_sanitizers():
    assert " passed" in check("scripts/sanitized", BIN)


def test_a_defect_would_be_found(tmp_path):
    """The library that such a run loads ends the process where it reads too far."""
    check("scripts/sanitized", BIN, "tests/logic/test_m2n_message.py")  # builds it
    planted = tmp_path / "test_planted.py"
    planted.write_text(PLANTED)
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        check("scripts/sanitized", BIN, planted)


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_it(target):
    assert target in check("scripts/fuzz", str(FUZZ_SECONDS), target)


PLANTED = """
import ctypes
import torch
from megainfer.compute.cpu.kernels import library

def test_reading_past_the_end():
    rows = (ctypes.c_float * 8)()
    native = library.load()
    native.megainfer_read.restype = ctypes.c_float
    native.megainfer_read(torch.zeros(8).data_ptr(), 4096)
"""
