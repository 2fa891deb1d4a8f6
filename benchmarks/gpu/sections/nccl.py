"""The tests of what goes by NCCL, between two processes on one GPU: nodes' messages over the road
`dist`, and the rows of a node's two ranks, each beside what it is to be."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from gpu.bench import Bench

ROOT = Path(__file__).parents[3]
TESTS = {
    "dist": "tests/processes/test_m2n_dist.py",
    "ranks": "tests/processes/test_gpu_ranks_served.py",
}
SECONDS = 70.0


def run(bench: Bench) -> dict[str, Any]:
    """By what it is about."""
    if bench.dry:
        return dict.fromkeys(TESTS, "needs a GPU")
    return bench.answers({name: partial(outcome, test) for name, test in TESTS.items()})


def outcome(test: str) -> dict[str, Any]:
    """Its exit status and the end of what it said, also where it lacks a package."""
    options = ("-q", "-p", "no:cacheprovider", "-m", "gpu", test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    return {"status": done.returncode, "said": done.stdout[-2000:]}
