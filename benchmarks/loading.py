"""How long an instance takes to load a checkpoint, and the memory that it takes for it.

    python benchmarks/loading.py
    python benchmarks/loading.py --gigabytes 2 --format fp8 --nodes 1x1 2x2 --json out.json
    python benchmarks/loading.py --model MODEL --nodes 1x1 --cache cold

A checkpoint of random weights is written into a temporary folder, in shards; or it is `--model`, a
folder or GGUF file (of gpt-oss-20b's shapes: `gpt_oss.py`). For each number of
attention and expert nodes (MxN) an instance is started and, once it is ready, ended; with `cold`
the system has forgotten the files before. Columns, of each process:

    load s    from when processes are forked to its last weight
    GB        on disk of the weights that it loads
    GB/s      of them, by that time
    read GB   from files in all, by the system's count (what is mapped isn't counted)
    peak GB   of memory, by the system's count (VmHWM), shared libraries included

and of the instance: ready s, from the start of the first process until all serve.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from measures import hardware
from rich.console import Console
from rich.table import Table
from shards import LAYERS, forget, write_shards

from megainfer.config import EngineConfig
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.model_folder.resolve import ModelSource, resolve_model
from megainfer.supervise.supervisor import Supervisor

GB = 1e9


@dataclass
class Loading:
    """One process's loading. Times are of a monotonic clock; bytes are on disk."""

    began: float
    ended: float = 0.0
    bytes: int = 0


@dataclass
class Report:
    """What one process did. load: seconds. Others: bytes."""

    process: str
    load: float
    loaded: int
    read: int
    peak: int


@dataclass
class Run:
    """An instance's start. ready: seconds."""

    nodes: str
    cache: str
    ready: float = 0.0
    processes: list[Report] = field(default_factory=list)


class Watcher:
    """The supervisor's observer: notes how loading goes; ends the instance when it is ready."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.error: str | None = None
        self._loadings: dict[str, Loading] = {}
        self._started = monotonic()
        self._loading_since = 0.0

    def stage(self, text: str) -> None:
        if text == "loading weights":
            self._loading_since = monotonic()

    def loading(self, name: str, done: int, total: int) -> None:
        own = self._loadings.setdefault(name, Loading(self._loading_since))
        own.bytes = done
        if done == total:
            own.ended = monotonic()

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        self.run.ready = monotonic() - self._started
        processes = _children()
        for name, own in sorted(self._loadings.items()):
            role, number = name.split()[0], name.split()[-1]
            process = processes[f"mega-{role[:6]}-{number}"]
            seconds = own.ended - own.began
            self.run.processes.append(
                Report(name, seconds, own.bytes, _read_by(process), _peak_of(process))
            )
        os.kill(os.getpid(), signal.SIGTERM)

    def ended(self, error: str | None) -> None:
        self.error = error


def _children() -> dict[str, int]:
    """Of this process: their ids by name."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {Path(f"/proc/{pid}/comm").read_text().strip(): int(pid) for pid in children}


def _peak_of(pid: int) -> int:
    return _field(f"/proc/{pid}/status", "VmHWM") * 1024


def _read_by(pid: int) -> int:
    return _field(f"/proc/{pid}/io", "rchar")


def _field(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise OSError(f"{path} has no {name}")


def start(folder: Path, args: argparse.Namespace, nodes: str, cache: str) -> Run:
    """In a process of its own: whoever imported torch and computed forks badly."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as out:
            out.write(json.dumps(asdict(_start(folder, args, nodes, cache))))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit(f"{nodes} with a {cache} cache did not start")
    run = json.loads(text)
    return Run(run["nodes"], run["cache"], run["ready"], [Report(**p) for p in run["processes"]])


def _start(folder: Path, args: argparse.Namespace, nodes: str, cache: str) -> Run:
    watcher = Watcher(Run(nodes, cache))
    status = Supervisor(_plan(folder, args, nodes), watcher).run()
    if status:
        print(watcher.error, file=sys.stderr)
        os._exit(status)
    return watcher.run


def _plan(folder: Path, args: argparse.Namespace, nodes: str) -> Plan:
    attention, experts = (int(count) for count in nodes.split("x"))
    config = EngineConfig(
        model=str(folder),
        attn_gpus=attention,
        ffn_gpus=experts,
        micro_batches=1,
        dtype=args.dtype,
        expert_dtype=args.expert_dtype,
        max_model_len=1024,
        max_num_seqs=4,
    )
    return make_plan(config, folder, read_machine())


def table(runs: Sequence[Run], title: str) -> Table:
    shown = Table(title=title)
    for name in ("nodes", "cache", "process"):
        shown.add_column(name)
    for name in ("load s", "GB", "GB/s", "read GB", "peak GB", "ready s"):
        shown.add_column(name, justify="right")
    for run in runs:
        for process in run.processes:
            shown.add_row(run.nodes, run.cache, *_cells(process), "")
        shown.add_row(run.nodes, run.cache, "all", *[""] * 5, f"{run.ready:.1f}", end_section=True)
    return shown


def _cells(process: Report) -> tuple[str, ...]:
    rate = process.loaded / process.load / GB
    sizes = (f"{size / GB:.2f}" for size in (process.read, process.peak))
    size = f"{process.loaded / GB:.2f}"
    return (process.process, f"{process.load:.1f}", size, f"{rate:.2f}", *sizes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of the checkpoint")
    parser.add_argument("--shard-gigabytes", type=float, default=1.0)
    parser.add_argument(
        "--layer", choices=LAYERS, default="30B-A3B", help="of a model of this size"
    )
    parser.add_argument("--format", choices=["bf16", "fp8"], default="bf16")
    parser.add_argument("--nodes", nargs="+", default=["1x1", "1x2", "2x2"], metavar="MxN")
    parser.add_argument("--cache", nargs="+", choices=["cold", "warm"], default=["cold", "warm"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--expert-dtype", default="auto")
    parser.add_argument("--folder", type=Path, help="for the checkpoint; else a temporary one")
    parser.add_argument("--model", type=Path, help="measure this one")
    parser.add_argument("--json", type=Path, help="write the results there")
    return parser.parse_args()


def write(folder: Path, args: argparse.Namespace) -> None:
    if not (folder / "config.json").exists():
        num_bytes, shard_bytes = int(args.gigabytes * GB), int(args.shard_gigabytes * GB)
        fp8 = args.format == "fp8"
        write_shards(folder, LAYERS[args.layer], num_bytes, shard_bytes, fp8)


def measure(folder: Path, files: Sequence[Path], args: argparse.Namespace) -> list[Run]:
    runs = []
    for nodes in args.nodes:
        for cache in args.cache:
            if cache == "cold":
                forget(files)
            runs.append(start(folder, args, nodes, cache))
    return runs


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as temporary:
        if args.model is None:
            folder = args.folder or Path(temporary)
            write(folder, args)
        else:
            folder = resolve_model(ModelSource(str(args.model)), lambda text, done: None)
        single = args.model is not None and args.model.is_file()
        files = [args.model] if single else sorted(folder.glob("*.safetensors"))
        runs = measure(folder, files, args)
        on_disk = sum(path.stat().st_size for path in files)
    what = args.format if args.model is None else f"{args.model.name}'s weights"
    title = f"{on_disk / GB:.2f} GB of {what} on disk, computed in {args.dtype}"
    console = Console(width=120)
    console.print(hardware(), highlight=False)
    console.print(table(runs, title))
    if args.json:
        results: list[dict[str, Any]] = [asdict(run) for run in runs]
        report = {"hardware": hardware(), "on_disk": on_disk, "results": results}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
