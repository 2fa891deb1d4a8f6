"""The engines of two checkouts, loaded side by side and asked in turn, until each ratio is known.

    python benchmarks/paired_engines.py OLD NEW --model FOLDER [--precision bf16 int8]
        [--concurrency 1 8 64] [--within 0.02] [--max-pairs 200] [--new-options JSON] [--json FILE]
        [--http]

Where `paired.py` starts everything anew for each round, here one engine of each checkout stays
loaded, and a pair is two loads right after one another: whatever else slows a shared machine for
longer than that slows both. Who goes first changes from pair to pair. Ratios are of tokens a
second of whole loads, above 1 where NEW is faster; the interval is of the mean log-ratio, by
Student's t. Whoever isn't asked is stopped meanwhile. With --http each is a server whose answers
are streamed. Exits with 1 where a ratio lies wholly below 0.98.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import with_tokenizer
from measures import hardware
from peers.entrants import PRECISIONS, Entrant, Work, own
from peers.measurement import Load
from peers.offline import OfflineEngine
from peers.served import ServedEngine
from ratios import Interval, Verdict, interval_of
from rich.console import Console
from rich.table import Table

ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "1A1E m=2": {"attn_gpus": 1, "ffn_gpus": 1, "micro_batches": 2},
    "1A2E m=2": {"attn_gpus": 1, "ffn_gpus": 2, "micro_batches": 2},
    "colocated": {"colocated": True},
}
DTYPES = {
    "f32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "expert_dtype": "int8", "attention_dtype": "int8"},
}
Engine = OfflineEngine | ServedEngine

LIMIT_SECONDS = 300.0
FEWEST_PAIRS = 10


@dataclass(frozen=True)
class Duel:
    """One arrangement under one load. old, new: medians in tokens a second."""

    arrangement: str
    precision: str
    concurrency: int
    old: float
    new: float
    ratios: list[float]

    @property
    def interval(self) -> Interval:
        return interval_of(self.ratios)

    def row(self, within: float) -> list[str]:
        interval = self.interval
        return [
            self.arrangement,
            self.precision,
            str(self.concurrency),
            f"{self.old:.0f}",
            f"{self.new:.0f}",
            f"{median(self.ratios):.3f}",
            f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
            str(len(self.ratios)),
            interval.verdict(within),
        ]


def main() -> int:
    args = parse_args()
    duels = list(fight_all(args))
    table = Table("engine", "precision", "at", "old", "new", "ratio", "mean", "pairs", "verdict")
    for duel in duels:
        table.add_row(*duel.row(args.within))
    console = Console(width=120)
    console.print(hardware())
    console.print(table)
    if args.json:
        rows = [{**asdict(duel), **asdict(duel.interval)} for duel in duels]
        args.json.write_text(json.dumps({"hardware": hardware(), "duels": rows}, indent=1))
    return int(any(duel.interval.verdict(args.within) is Verdict.BELOW for duel in duels))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["bf16", "int8"])
    parser.add_argument("--engine", nargs="+", choices=ARRANGEMENTS, default=[*ARRANGEMENTS])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--within", type=float, default=0.02, help="as a share; default: 0.02")
    parser.add_argument("--max-pairs", type=int, default=200)
    parser.add_argument(
        "--new-options",
        type=json.loads,
        default={},
        metavar="JSON",
        help="""engine options that NEW alone has, e.g. '{"expert_replicas": 2}'; OLD NEW may then
        be one checkout, named twice""",
    )
    parser.add_argument("--http", action="store_true", help="through each checkout's server")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def fight_all(args: argparse.Namespace) -> Iterator[Duel]:
    with tempfile.TemporaryDirectory() as scratch:
        yield from _fight_all(args, Path(scratch))


def _fight_all(args: argparse.Namespace, scratch: Path) -> Iterator[Duel]:
    tokens = args.prompt_tokens + args.output_tokens
    text_model = with_tokenizer(args.model, scratch)
    work = Work(args.model, text_model, max(args.concurrency), tokens, http=args.http)
    for precision in args.precision:
        for name in args.engine:
            with ExitStack() as stack:
                entrant = own(work, name, precision, {**ARRANGEMENTS[name], **DTYPES[precision]})
                changed = own(
                    work,
                    name,
                    precision,
                    {**ARRANGEMENTS[name], **DTYPES[precision], **args.new_options},
                )
                engines = [
                    _open(stack, entrant, args.old, args),
                    _open(stack, changed, args.new, args),
                ]
                for concurrency in args.concurrency:
                    load = Load(concurrency, args.prompt_tokens, args.output_tokens)
                    yield _fight(engines, load, args)


def _open(stack: ExitStack, entrant: Entrant, tree: Path, args: argparse.Namespace) -> Engine:
    """The entrant as that checkout has it, loaded."""
    benchmarks = tree.resolve() / "benchmarks"
    programs = benchmarks / "peers" / "programs"
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, (tree.resolve(), benchmarks, programs))),
        "PYTHONSAFEPATH": "1",  # what an engine starts would find the current folder's first
    }
    vocabulary = json.loads((args.model / "config.json").read_text())["vocab_size"]
    engine: Engine
    if args.http:
        engine = ServedEngine(replace(entrant, variables=variables), vocabulary, LIMIT_SECONDS)
    else:
        program = str(programs / "run_megainfer.py")
        arguments = (sys.executable, program, entrant.arguments[-1])
        entrant = replace(entrant, arguments=arguments, variables=variables)
        engine = OfflineEngine(entrant, vocabulary, LIMIT_SECONDS)
    stack.callback(engine.close)
    return engine


def _fight(engines: Sequence[Engine], load: Load, args: argparse.Namespace) -> Duel:
    seconds: list[tuple[float, float]] = []
    _pair(engines, load, 0)  # warm
    while len(seconds) < args.max_pairs:
        seconds.append(_pair(engines, load, len(seconds) + 1))
        ratios = [old / new for old, new in seconds]
        enough = len(seconds) >= FEWEST_PAIRS and len(seconds) % 2 == 0
        if enough and interval_of(ratios).is_within(args.within):
            break
    entrant = engines[0].entrant
    duel = Duel(
        entrant.name,
        entrant.precision,
        load.concurrency,
        load.tokens / median(old for old, _ in seconds),
        load.tokens / median(new for _, new in seconds),
        ratios,
    )
    print(*duel.row(args.within), sep="  ", file=sys.stderr, flush=True)
    return duel


def _pair(engines: Sequence[Engine], load: Load, number: int) -> tuple[float, float]:
    """Seconds of (old, new), both with the same prompts."""
    order = (0, 1) if number % 2 else (1, 0)
    seconds = {}
    for index in order:
        with engines[index].running():
            seconds[index] = engines[index].run_whole(load, number)
    return seconds[0], seconds[1]


if __name__ == "__main__":
    sys.exit(main())
