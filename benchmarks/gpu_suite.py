"""All that only a GPU can show, in minutes, from the source tree and without an installation.

    python benchmarks/gpu_suite.py
    python benchmarks/gpu_suite.py --list
    python benchmarks/gpu_suite.py --only experts attention --budget 120
    python benchmarks/gpu_suite.py --dry

It takes torch's build for CUDA, which brings Triton, with numpy and safetensors. Each section is a
process with a limit of its own, which is killed when that is over; what has been found is written
after each, with the hardware and versions, into a file of benchmarks/results/, and so is what a
section had found that was killed, or was at work when all of it was told to end. --dry runs the
same code in tiny sizes on Triton's interpreter, to see that it runs: its figures mean nothing.
"""

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUDGET_SECONDS = 420.0
LEAST_SECONDS = 10.0  # for which a section is worth a start
LOOK_SECONDS = 0.2


class Section(NamedTuple):
    """A module of gpu/sections. limit: seconds after which it is killed."""

    name: str
    limit: float


# In the order of their worth, should the time end; what may hang comes last.
SECTIONS = (
    Section("probes", 60),
    Section("graphs", 120),
    Section("colocated", 120),
    Section("instances", 180),
    Section("experts", 60),
    Section("attention", 60),
    Section("tuning", 90),
    Section("kernels", 150),
    Section("reads", 60),
    Section("nccl", 150),
    Section("questions", 90),
)


def parse() -> argparse.Namespace:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the sections")
    parser.add_argument("--only", nargs="+", choices=names, help="these sections")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds of all")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, interpreted on the CPU")
    parser.add_argument("--json", type=Path, help="where results go, else a new file")
    parser.add_argument("--section", choices=names, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.list:
        for section in SECTIONS:
            source = (ROOT / "benchmarks" / "gpu" / "sections" / f"{section.name}.py").read_text()
            what = ast.get_docstring(ast.parse(source)) or ""
            print(f"{section.name:12} {section.limit:4.0f} s at most   {what.splitlines()[0]}")
    elif options.section:
        run_section(options.section, options.dry, options.json)
    else:
        chosen = [s for s in SECTIONS if not options.only or s.name in options.only]
        run_all(chosen, options.budget, options.dry, options.json or new_file())


def new_file() -> Path:
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"


def run_all(sections: Sequence[Section], budget: float, dry: bool, file: Path) -> None:
    ends = time.monotonic() + budget
    document: dict[str, Any] = {"dry": dry, "machine": machine(dry), "sections": {}}
    print(json.dumps(document["machine"]))
    end = End()
    for section in sections:
        left = ends - time.monotonic()
        if end.told or left < LEAST_SECONDS:
            why = "it was told to end" if end.told else f"{budget:.0f} s were over"
            found: dict[str, Any] = {"status": "left out", "why": why}
        else:
            found = outcome(section, min(section.limit, left), dry, end)
        document["sections"][section.name] = found
        file.write_text(json.dumps(document, indent=1))
        print(f"{section.name}: {json.dumps(found)}", flush=True)
    print(f"results: {file}")


class End:
    """told: whether a signal has asked for the end of all, which comes when results are written."""

    def __init__(self) -> None:
        self.told = False
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.told = True


def outcome(section: Section, limit: float, dry: bool, end: End) -> dict[str, Any]:
    """What it found, or how it ended, and after how long."""
    with TemporaryDirectory() as folder:
        into, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, __file__, "--section", section.name, "--json", str(into)]
        started = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, *(["--dry"] if dry else [])],
                env=environment(dry),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it ends with all that it has started
            )
            try:
                code = waited(process, started + limit, end)
            finally:
                end_session(process)
        seconds = round(time.monotonic() - started, 1)
        found = {"found": json.loads(into.read_text())} if into.exists() else {}
        if code == 0:
            return {"status": "done", "seconds": seconds, **found}
        status = f"failed with {code}"
        if code is None:
            status = "told to end" if end.told else f"over {limit:.0f} s"
        return {"status": status, "seconds": seconds, **found, "log": log.read_text()[-2000:]}


def waited(process: "subprocess.Popen[bytes]", until: float, end: End) -> int | None:
    """Its code; None where it goes on still."""
    while not end.told and time.monotonic() < until:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(LOOK_SECONDS)
    return None


def environment(dry: bool) -> dict[str, str]:
    """In which the source tree is found, and kernels are interpreted when dry: Triton's own ones
    look at that when they are defined, which may be before a section begins."""
    paths = (str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))
    interpret = {"TRITON_INTERPRET": "1"} if dry else {}
    return {**os.environ, **interpret, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def end_session(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):  # nobody of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_section(name: str, dry: bool, file: Path) -> None:
    from gpu.bench import Bench

    def note(found: Any) -> None:
        """In one piece, whenever the section may be killed."""
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(found))
        whole.replace(file)

    bench = Bench(dry, note)  # before kernels are defined
    note(import_module(f"gpu.sections.{name}").run(bench))


def machine(dry: bool) -> dict[str, Any]:
    """Hardware and versions; of the GPU what a short process tells, so that none is held here."""
    script = f"import json; from gpu.machine import machine; print(json.dumps(machine({dry})))"
    told = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(dry),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if told.returncode:
        sys.exit(told.stderr.splitlines()[-1] if told.stderr else "no GPU can be asked")
    return dict(json.loads(told.stdout))


if __name__ == "__main__":
    main()
