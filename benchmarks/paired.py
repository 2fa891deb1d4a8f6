"""One benchmark in two checkouts in turn, until the ratio of each figure is known well enough.

    python benchmarks/paired.py OLD NEW -- benchmarks/kernels.py --weights int8 --rows 1 8 64
    python benchmarks/paired.py OLD NEW --only '*/tokens_per_second' --json out.json \\
        -- benchmarks/throughput.py --dtype bfloat16 --concurrency 1 8 64 --rounds 1

The command runs in each checkout's folder, with the checkout first on PYTHONPATH, and with --json
and a file's name added. Who goes first changes from round to round, and rounds are counted in
twos, so that neither a machine that grows slower nor what a run leaves behind favours one. Ratios
are above 1 where NEW is better: times are turned over. It ends when each figure's interval is
within --within of its mean, after --max-rounds, or at an interrupt, and tells what it knows. Exits
with 1 where a figure lies wholly below 0.98, with 2 where a run failed. Columns:

    figure    its path in the JSON; rows of lists go by the fields that tell them apart
    old, new  medians of all rounds
    ratio     the median of the rounds' ratios
    mean      of the log-ratios, as a ratio, with its 95 % interval by Student's t
    verdict   undecided: the interval reaches below 0.98, and is still wide

Figures are numbers whose names say which way is better (rates, times); --higher and --lower name
more of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from figures import Better, Figures, Selection, figures_of
from ratios import Interval, Verdict, interval_of
from rich.console import Console
from rich.table import Table

LAST_WORDS = 2000


class RunFailed(Exception):
    """A command ended with an error, or its figures aren't the other checkout's."""


@dataclass(frozen=True)
class Round:
    """Both checkouts' figures, by the same paths."""

    old: Figures
    new: Figures

    def __post_init__(self) -> None:
        alone = self.old.keys() ^ self.new.keys()
        if alone:
            raise RunFailed(f"only one of the checkouts has {', '.join(sorted(alone))}")
        if not self.old:
            raise RunFailed("there are no figures in the JSON; name some: --higher, --lower")


@dataclass(frozen=True)
class Result:
    """One figure after all rounds in which both checkouts told it."""

    figure: str
    better: Better
    old: float
    new: float
    ratios: list[float]

    @property
    def interval(self) -> Interval:
        return interval_of(self.ratios)


@dataclass
class Benchmark:
    """The command in either checkout. hardware: as the benchmark tells it."""

    command: Sequence[str]
    selection: Selection
    hardware: str = ""
    rounds: list[Round] = field(default_factory=list)

    def run_round(self, old: Path, new: Path) -> None:
        """Raises RunFailed."""
        sides = {"old": old, "new": new}
        order = sides if len(self.rounds) % 2 == 0 else reversed(sides)
        self.rounds.append(Round(**{side: self._figures(side, sides[side]) for side in order}))

    def results(self) -> list[Result]:
        """Without figures that never had a ratio."""
        paths = self.rounds[0].old if self.rounds else ()
        return [result for path in paths if (result := self._result(path)) is not None]

    def _figures(self, side: str, checkout: Path) -> Figures:
        started = monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            document = run(self.command, checkout, Path(scratch) / "out.json")
        tell(f"round {len(self.rounds) + 1}, {side}: {monotonic() - started:.0f} s")
        self.hardware = document.get("hardware", "") if isinstance(document, Mapping) else ""
        return figures_of(document, self.selection)

    def _result(self, path: str) -> Result | None:
        pairs = [(r.old[path], r.new[path]) for r in self.rounds if path in r.old]
        told = [(old, new) for old, new in pairs if old is not None and new is not None]
        better = self.selection.better(path)
        if not told or better is None:
            return None
        old, new = (median(values) for values in zip(*told, strict=True))
        return Result(path, better, old, new, [ratio(*pair, better) for pair in told])


def ratio(old: float, new: float, better: Better) -> float:
    """Above 1 where new is better."""
    return new / old if better is Better.HIGHER else old / new


def run(command: Sequence[str], checkout: Path, path: Path) -> Any:
    """The JSON that the command writes to path. Raises RunFailed."""
    finished = subprocess.run(
        [*command, "--json", str(path)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if finished.returncode or not path.exists():
        words = finished.stderr[-LAST_WORDS:]
        raise RunFailed(f"{checkout}: ended with {finished.returncode}\n{words}")
    return json.loads(path.read_text())


def compare(args: argparse.Namespace, benchmark: Benchmark) -> None:
    """Rounds until all is known, or there have been enough. Raises RunFailed."""
    while len(benchmark.rounds) < args.max_rounds:
        benchmark.run_round(args.old, args.new)
        if args.json:
            write_json(args, benchmark)
        count = len(benchmark.rounds)
        if count % 2 == 0 and count >= args.min_rounds and all_within(benchmark, args.within):
            return


def all_within(benchmark: Benchmark, share: float) -> bool:
    results = benchmark.results()
    wide = [result for result in results if not result.interval.is_within(share)]
    tell(f"{len(results) - len(wide)} of {len(results)} intervals are within {share:.1%}")
    return not wide


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def table_of(results: Sequence[Result], share: float) -> Table:
    table = Table()
    table.add_column("figure", no_wrap=True)
    for title in ("old", "new", "ratio", "mean", "95 %", "rounds", "verdict"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        interval = result.interval
        table.add_row(
            result.figure,
            f"{result.old:.4g}",
            f"{result.new:.4g}",
            f"{median(result.ratios):.3f}",
            f"{interval.mean:.3f}",
            f"{interval.low:.3f} to {interval.high:.3f}",
            str(len(result.ratios)),
            interval.verdict(share),
        )
    return table


def report(args: argparse.Namespace, benchmark: Benchmark) -> None:
    console = Console(highlight=False, width=max(180, Console().width))
    console.print(f"{benchmark.hardware}\n{' '.join(args.command)}", soft_wrap=True)
    console.print(table_of(benchmark.results(), args.within))


def write_json(args: argparse.Namespace, benchmark: Benchmark) -> None:
    document = {
        "hardware": benchmark.hardware,
        "old": str(args.old),
        "new": str(args.new),
        "command": args.command,
        "results": [_json_row(result, args.within) for result in benchmark.results()],
        "rounds": [asdict(each) for each in benchmark.rounds],
    }
    args.json.write_text(json.dumps(document, indent=1))


def _json_row(result: Result, share: float) -> dict[str, Any]:
    """JSON has no infinity, which an interval of one round reaches to."""
    interval = result.interval
    ends = asdict(interval) if len(result.ratios) > 1 else {"mean": interval.mean}
    verdict = interval.verdict(share)
    return {**asdict(result), "ratio": median(result.ratios), **ends, "verdict": verdict}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """command: what comes after --, with --python before a program of Python's."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] OLD NEW -- COMMAND...",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add_options(parser)
    own = list(takewhile(lambda argument: argument != "--", arguments))
    args = parser.parse_args(own)
    args.command = list(arguments[len(own) + 1 :])
    check(parser, args)
    args.old, args.new = args.old.resolve(), args.new.resolve()
    if args.command[0].endswith(".py"):
        args.command.insert(0, args.python)
    return args


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    python = "runs a COMMAND that ends in .py; default: this one"
    parser.add_argument("--python", default=sys.executable, help=python)
    parser.add_argument("--min-rounds", type=int, default=6, help="few can agree by chance")
    parser.add_argument("--max-rounds", type=int, default=30)
    parser.add_argument("--within", type=float, default=0.02, help="as a share; default: 0.02")
    for name in ("higher", "lower"):
        text = f"names of figures of which {name} is better, as patterns"
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="NAME", help=text)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATH", help="patterns")
    parser.add_argument("--without", nargs="+", default=[], metavar="PATH", help="patterns")
    parser.add_argument("--json", type=Path, help="write the results there after each round")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.command:
        parser.error("give a command after --")
    if "--json" in args.command:
        parser.error("leave --json out of the command: each run gets a file of its own")
    if args.max_rounds < 2:
        parser.error(f"--max-rounds {args.max_rounds}: an interval takes at least 2")


def main() -> None:
    args = parse(sys.argv[1:])
    selection = Selection(args.higher, args.lower, args.only, args.without)
    benchmark = Benchmark(args.command, selection)
    try:
        compare(args, benchmark)
    except KeyboardInterrupt:
        tell("interrupted")
    except RunFailed as error:
        tell(str(error))
        sys.exit(2)
    report(args, benchmark)
    verdicts = [result.interval.verdict(args.within) for result in benchmark.results()]
    sys.exit(Verdict.BELOW in verdicts)


if __name__ == "__main__":
    main()
