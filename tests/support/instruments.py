"""The instruments of `benchmarks/`, run as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(
    instrument: str, *arguments: str | Path, seconds: float = 100
) -> subprocess.CompletedProcess[str]:
    """A script of `benchmarks/` to its end. Raises TimeoutExpired after so many seconds."""
    command = [sys.executable, str(ROOT / "benchmarks" / instrument), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
