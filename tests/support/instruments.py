"""The instruments of `benchmarks/`, run as a user does, but forked where other programs are.

`python -m tests.support.instruments SCRIPT ...` is `python SCRIPT ...`.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from tests.support.served import run_module

ROOT = Path(__file__).parents[2]


def run(
    instrument: str, *arguments: str | Path, seconds: float = 100
) -> subprocess.CompletedProcess[str]:
    """A script of `benchmarks/` to its end. Raises TimeoutExpired after so many seconds."""
    words = [str(ROOT / "benchmarks" / instrument), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return run_module(__name__, words, environment, seconds)


def main() -> None:
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
