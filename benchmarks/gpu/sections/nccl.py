"""The test of the road `dist` over NCCL, between two processes on one GPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu.bench import Bench

ROOT = Path(__file__).parents[3]
TEST = "tests/processes/test_m2n_dist.py"
SECONDS = 70.0


def run(bench: Bench) -> dict[str, Any]:
    """Its exit status and the end of what it said, also where it lacks a package."""
    if bench.dry:
        return {"needs": "a GPU"}
    options = ("-q", "-p", "no:cacheprovider", "-m", "gpu", TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    return {"status": done.returncode, "said": done.stdout[-2000:]}
