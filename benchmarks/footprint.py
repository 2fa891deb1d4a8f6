"""What nodes take for each other on the roads of M2N: threads, descriptors, memory, time to meet.

    python benchmarks/footprint.py
    python benchmarks/footprint.py --nodes 1x1 4x4 --roads dist --tokens 512

Starts an instance of a small model for each road and number of nodes, looks at its processes when
it serves, and ends it. What every further peer costs is the difference between the first and the
last of --nodes, by which --paper is counted. Columns, each of the median node of its role:

    threads   of the process
    fds       its open descriptors
    MiB       of memory that is its own and was written to (Private_Dirty), beside weights: of those
              an expert node has fewer, the more there are
    slots     MiB of M2N's buffers that it has by the layout, written to or not
    meet s    of the instance: from loaded weights until all have met and serve
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import SHAPES, ensure_checkpoint
from measures import hardware
from rich.console import Console
from rich.table import Table

from megainfer.config import EngineConfig
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.supervise.supervisor import Supervisor

MIB = 2**20
MEETING = "connecting"
WEIGHTS = "weights"
ROLES = {"attention": "attent", "expert": "expert"}


@dataclass(frozen=True)
class Footprint:
    """Of the median node of a role. slots, own: MiB. meeting: seconds, of the instance."""

    road: str
    nodes: str
    role: str
    threads: float
    descriptors: float
    own: float
    slots: float
    meeting: float = 0.0


class Watcher:
    """The supervisor's observer: looks at all nodes, and ends the instance, when it is ready."""

    def __init__(self, plan: Plan, road: str, nodes: str) -> None:
        self._plan, self._road, self._nodes = plan, road, nodes
        self.found: list[Footprint] = []
        self.error: str | None = None

    def stage(self, text: str) -> None:
        """Nobody waits for it."""

    def loading(self, name: str, done: int, total: int) -> None:
        """Nor for this."""

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        geometry = self._plan.geometry(micro_batches)
        experts = range(self._plan.num_expert)
        twice = 2 if self._road == "dist" else 1
        slots = {
            "attention": twice * geometry.attention_bytes / MIB,
            "expert": twice * geometry.expert_bytes / MIB,
        }
        weights = {
            "attention": self._plan.attention_ledger().of(WEIGHTS) / MIB,
            "expert": median(self._plan.expert_ledger(n).of(WEIGHTS) for n in experts) / MIB,
        }
        for role, short in ROLES.items():
            own = [of_process(pid) for name, pid in children() if f"-{short}-" in name]
            threads, descriptors, mebibytes = (median(each) for each in zip(*own, strict=True))
            self.found.append(
                Footprint(
                    self._road,
                    self._nodes,
                    role,
                    threads,
                    descriptors,
                    mebibytes - weights[role],
                    slots[role],
                    startup[MEETING],
                )
            )
        os.kill(os.getpid(), signal.SIGTERM)

    def ended(self, error: str | None) -> None:
        self.error = error


def children() -> Iterator[tuple[str, int]]:
    """Of this process, by their names."""
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        yield Path(f"/proc/{pid}/comm").read_text().strip(), int(pid)


def of_process(pid: int) -> tuple[int, int, float]:
    """Threads, descriptors, MiB of its own."""
    process = Path(f"/proc/{pid}")
    descriptors = len(list((process / "fd").iterdir()))
    own = _field(process / "smaps_rollup", "Private_Dirty") / 1024
    return _field(process / "status", "Threads"), descriptors, own


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise OSError(f"{path} has no {name}")


def measured(folder: Path, args: argparse.Namespace, road: str, nodes: str) -> list[Footprint]:
    """In a process of its own, which forks the nodes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as out:
            out.write(json.dumps([asdict(each) for each in _measured(folder, args, road, nodes)]))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit(f"{nodes} nodes over {road} did not start")
    return [Footprint(**each) for each in json.loads(text)]


def _measured(folder: Path, args: argparse.Namespace, road: str, nodes: str) -> list[Footprint]:
    attention, experts = (int(count) for count in nodes.split("x"))
    config = EngineConfig(
        model=str(folder),
        attn_gpus=attention,
        ffn_gpus=experts,
        micro_batches=args.micro_batches,
        m2n=road,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=args.tokens,
        kv_cache_memory=16 * MIB,
    )
    plan = make_plan(config, folder, read_machine())
    watcher = Watcher(plan, road, nodes)
    if Supervisor(plan, watcher).run():
        print(watcher.error, file=sys.stderr)
        os._exit(1)
    return watcher.found


def on_paper(found: Sequence[Footprint], nodes: str) -> Iterator[Footprint]:
    """So many nodes, by what each further peer has cost between the first and the last."""
    attention, experts = (int(count) for count in nodes.split("x"))
    for road in dict.fromkeys(each.road for each in found):
        for role, peers in (("attention", experts), ("expert", attention)):
            own = [each for each in found if (each.road, each.role) == (road, role)]
            first, last = own[0], own[-1]
            step = (peers - _peers(first)) / max(1, _peers(last) - _peers(first))
            values = {
                name: getattr(first, name) + step * (getattr(last, name) - getattr(first, name))
                for name in ("threads", "descriptors", "own", "slots")
            }
            yield Footprint(road, f"{nodes} on paper", role, **values)


def _peers(each: Footprint) -> int:
    attention, experts = (int(count) for count in each.nodes.split("x"))
    return experts if each.role == "attention" else attention


def print_table(console: Console, found: Sequence[Footprint]) -> None:
    table = Table()
    for title in ("road", "nodes", "role"):
        table.add_column(title)
    for title in ("threads", "fds", "MiB", "slots", "meet s"):
        table.add_column(title, justify="right")
    for each in sorted(found, key=lambda each: (each.road, each.role)):
        counts = (f"{each.threads:.0f}", f"{each.descriptors:.0f}")
        sizes = (f"{each.own:.1f}", f"{each.slots:.1f}")
        meeting = f"{each.meeting:.2f}" if each.meeting else ""
        table.add_row(each.road, each.nodes, each.role, *counts, *sizes, meeting)
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nodes", nargs="+", default=["1x1", "2x2", "4x4"], metavar="MxN")
    parser.add_argument("--roads", nargs="+", choices=("shm", "dist"), default=["shm", "dist"])
    parser.add_argument("--paper", nargs="*", default=["8x16"], metavar="MxN")
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256, help="rows of a slot")
    parser.add_argument("--model", choices=SHAPES, default="0.17B")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    return parser.parse_args()


def main() -> None:
    args = parse()
    found: list[Footprint] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = ensure_checkpoint(args.model, Path(scratch))
        for road in args.roads:
            for nodes in args.nodes:
                found += measured(folder, args, road, nodes)
    every = [*found, *(each for nodes in args.paper for each in on_paper(found, nodes))]
    console = Console(highlight=False, width=max(100, Console().width))
    console.print(
        f"{hardware()}\n{args.model}, {args.tokens} rows, {args.micro_batches} micro-batches"
    )
    print_table(console, every)
    if args.json:
        results: list[dict[str, Any]] = [asdict(each) for each in every]
        args.json.write_text(json.dumps({"hardware": hardware(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
