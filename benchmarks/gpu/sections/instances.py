"""Whole instances on the GPU, served as users do: `gpu/instances.py`."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu.bench import Bench

SCRIPT = Path(__file__).parents[1] / "instances.py"
LOOK_SECONDS = 0.5


def run(bench: Bench) -> dict[str, Any]:
    """What it found, noted instance by instance; and how it ended, where it did before its time,
    such as for want of a package that serving takes and the suite doesn't."""
    if bench.dry:
        return {"needs": "a GPU"}
    with TemporaryDirectory() as folder:
        found, log = Path(folder) / "found.json", Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, SCRIPT, "--json", found], stdout=output, stderr=subprocess.STDOUT
            )
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
                bench.note(_read(found))
        said = {} if process.returncode == 0 else {"ended": log.read_text()[-2000:]}
        return {**_read(found), **said}


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.exists() else {}
