"""Faults of every kind, in every process, at every moment of an instance's life: what clients see.

    python benchmarks/chaos.py --seeds 1000 --out chaos.jsonl
    python benchmarks/chaos.py --seeds 100 --first 400 --shape 2x2+4
    python benchmarks/chaos.py --table chaos.jsonl

Each seed stands for one fault (tests/support/chaos/draw.py): what, in whom, when, under 1 or 64
requests of all kinds, on an instance of 1x1 to 2x3 nodes, with and without replicas of experts
(2x2+4: four more a node). Afterwards every answer is compared with the undisturbed one, and
processes, open files, memory and KV blocks with what they were. A line of JSON a seed is appended
to --out; seeds that stand there already are left out, so that a run goes on where it ended. Exit
status 1 where anything was wrong.

    pause s   the longest time for which one of the clients saw nothing, from the fault on
    back s    from the death of a process until another serves in its place
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from tests.support.chaos.draw import SHAPES, Draw, Phase, Scope, Shape, draw
from tests.support.chaos.instance import write_model
from tests.support.chaos.runner import Runner

Row = dict[str, Any]


def main() -> int:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no instance is left behind
    if args.table:
        console = Console()
        console.print(table(_rows(args.table)))
        return 0
    done = _rows(args.out) if args.out else []
    known = {row["seed"] for row in done}
    seeds = range(args.first, args.first + args.seeds)
    scope = Scope(shapes=args.shape, phases=args.phase)
    draws = [draw(seed, scope) for seed in seeds if seed not in known]
    rows = [row for row in done if row["seed"] in seeds] + _run(draws, args)
    console = Console()
    console.print(table(rows))
    wrong = [row for row in rows if row["wrong"]]
    fired = sum(row["fired"] for row in rows)
    console.print(f"{len(rows)} seeds, {fired} faults done, {len(wrong)} with something wrong")
    for row in wrong:
        console.print(row["draw"], row["wrong"][:3], markup=False)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--shape", type=_shape, nargs="+", default=SHAPES, metavar="MxN[+R]")
    parser.add_argument("--phase", type=Phase, nargs="+", default=tuple(Phase), choices=Phase)
    parser.add_argument("--out", type=Path, help="JSON lines, appended to")
    parser.add_argument("--table", type=Path, help="print the table of such a file, and no more")
    return parser.parse_args()


def _shape(text: str) -> Shape:
    shapes = {str(shape): shape for shape in SHAPES}
    if text not in shapes:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(shapes)}")
    return shapes[text]


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _run(draws: Sequence[Draw], args: argparse.Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="chaos-model-") as folder:
        runner = Runner(write_model(Path(folder)))
        try:
            for report in runner.run(draws):
                row = asdict(report)
                rows.append(row)
                print(f"{len(rows)}/{len(draws)} {row['draw']}: {_verdict(row)}", flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        finally:
            runner.close()
    return rows


def _verdict(row: Row) -> str:
    if row["wrong"]:
        return f"WRONG {row['wrong'][0][:300]}"
    return f"{row['seconds']:.1f} s" if row["fired"] else "it was over before"


def table(rows: Iterable[Row]) -> Table:
    """By fault and target, of those that were done."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["fired"]:
            groups[row["target"], row["fault"]].append(row)
    columns = ("target", "fault", "seeds", "wrong")
    found = Table(*columns, "pause p50", "pause p99", "back p50", "back p99", box=None)
    for (target, fault), group in sorted(groups.items()):
        pauses = [row["pause"] for row in group if row["pause"] is not None]
        backs = [seconds for row in group for _, seconds in row["back"]]
        wrong = sum(bool(row["wrong"]) for row in group)
        cells = [*_both(pauses), *_both(backs)]
        found.add_row(target, fault, str(len(group)), str(wrong), *cells)
    return found


def _both(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "", ""
    if len(values) == 1:
        return f"{values[0]:.2f}", f"{values[0]:.2f}"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return f"{cuts[49]:.2f}", f"{cuts[98]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
