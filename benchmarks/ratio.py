"""Attention : expert on given devices, beside the best colocated deployment on the same devices.

    python benchmarks/ratio.py
    python benchmarks/ratio.py --devices 8 --t-a-row 200 --row 20 --m 2 3

Stage times are set and processes sleep to them, so that as many devices as one likes share a few
cores; scheduler, ping-pong, gather and M2N are the real ones in real processes (`synthetic`), and
so is the collective of the colocated ones (`spread_experts`): data parallel attention with the
experts spread over all devices, which is what one would deploy there otherwise. Tokens choose
experts as a gate has them, equally popular unless --exponent says otherwise. A stage takes

    attention   --t-a ms for its weights, and --t-a-row us for each sequence (its context)
    experts     --read us for each expert that any row chose (its weights), and --row us for each
                row and expert that it chose

A device with attention has --batch sequences, in --m micro-batches; a colocated one, which keeps
experts beside them, --colocated-batch. Columns:

    devices    attention + expert devices, or colocated ones
    m          micro-batches
    tok/s      tokens a second of all devices, the median of the rounds
    a device   the same for each of the devices
    idle a/e   share of the time in which the devices of a role had nothing to do
    best       its pace beside that of the best colocated deployment
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import monotonic

from choosing import Choosing
from measures import hardware
from pingpong import synthetic_round
from rich.console import Console
from rich.table import Table
from spread_experts import SpreadCluster, SpreadStages
from synthetic import Stages, without_threads

from megainfer.simulator import Cost

COLOCATED_MICRO_BATCHES = (1, 2)
LEAST_STEPS = 2


@dataclass(frozen=True)
class Pace:
    """One deployment in one round, or the medians of several. attention: devices with attention
    alone, 0 where all are colocated."""

    attention: int
    devices: int
    micro_batches: int
    tokens_per_second: float
    idle_attention: float = 0.0
    idle_expert: float = 0.0

    @property
    def name(self) -> str:
        if not self.attention:
            return f"{self.devices} colocated"
        return f"{self.attention} + {self.devices - self.attention}"

    @property
    def per_device(self) -> float:
        return self.tokens_per_second / self.devices


def choosing_of(args: argparse.Namespace) -> Choosing:
    return Choosing(
        experts=args.experts,
        top_k=args.top_k,
        exponent=args.exponent,
        read=args.read / 1e6,
        row=args.row / 1e6,
        replicas=0,
    )


def attention_seconds(args: argparse.Namespace, rows: int) -> float:
    return float(args.t_a / 1e3 + args.t_a_row / 1e6 * rows)


def apart(args: argparse.Namespace, attention: int, m: int) -> Pace:
    rows = args.batch // m
    stages = Stages(
        num_attention=attention,
        num_expert=args.devices - attention,
        micro_batches=m,
        layers=args.layers,
        rows=rows,
        attention=attention_seconds(args, rows),
        expert=Cost(0.0, 0.0),  # in place of which is:
        choosing=choosing_of(args),
    )
    pace, _ = synthetic_round(stages, args.warm_up, args.duration)
    idle = pace.idle_attention, pace.idle_expert
    return Pace(attention, args.devices, m, pace.tokens_per_second, *idle)


def colocated(args: argparse.Namespace, m: int) -> Pace:
    rows = args.colocated_batch // m
    stages = SpreadStages(
        processes=args.devices,
        micro_batches=m,
        layers=args.layers,
        rows=rows,
        attention=attention_seconds(args, rows),
        choosing=choosing_of(args),
    )
    with SpreadCluster(stages) as cluster:
        a_step = cluster.run(1)
        steps = max(LEAST_STEPS, round(args.duration / a_step))
        seconds = cluster.run(steps)
    return Pace(0, args.devices, m, steps * m * rows * args.devices / seconds)


def paces(args: argparse.Namespace) -> Iterator[Pace]:
    for _ in range(args.rounds):
        for m in COLOCATED_MICRO_BATCHES:
            yield colocated(args, m)
        for attention in args.attention:
            for m in args.m:
                yield apart(args, attention, m)


def medians(found: list[Pace]) -> list[Pace]:
    """Of the rounds, in the order in which each deployment came first."""
    rounds: dict[tuple[int, int], list[Pace]] = {}
    for pace in found:
        rounds.setdefault((pace.attention, pace.micro_batches), []).append(pace)
    return [
        replace(
            own[0],
            tokens_per_second=median(pace.tokens_per_second for pace in own),
            idle_attention=median(pace.idle_attention for pace in own),
            idle_expert=median(pace.idle_expert for pace in own),
        )
        for own in rounds.values()
    ]


def best(found: list[Pace], *, colocated: bool) -> Pace:
    own = [pace for pace in found if (pace.attention == 0) is colocated]
    return max(own, key=lambda pace: pace.tokens_per_second)


def print_table(console: Console, found: list[Pace]) -> None:
    table = Table()
    for title in ("devices", "m", "tok/s", "a device", "idle a/e", "best"):
        table.add_column(title, justify="right")
    beside = best(found, colocated=True)
    for pace in found:
        idle = f"{pace.idle_attention:.0%} / {pace.idle_expert:.0%}" if pace.attention else "-"
        table.add_row(
            pace.name,
            str(pace.micro_batches),
            f"{pace.tokens_per_second:.1f}",
            f"{pace.per_device:.2f}",
            idle,
            f"{pace.tokens_per_second / beside.tokens_per_second:.2f}",
        )
    console.print(table)
    won = best(found, colocated=False)
    ratio = won.tokens_per_second / beside.tokens_per_second
    console.print(
        f"best apart: {won.name} with {won.micro_batches} micro-batches, {ratio:.2f} times the "
        f"best colocated ({beside.micro_batches} micro-batches)"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--attention", type=int, nargs="+", help="of these; all but one by default")
    parser.add_argument("--m", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=48, help="sequences of an attention device")
    parser.add_argument("--colocated-batch", type=int, help="of a colocated one; as --batch")
    parser.add_argument("--experts", type=int, default=64, help="of each layer")
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--exponent", type=float, default=0.0, help="of Zipf's law; 0: all alike")
    parser.add_argument("--t-a", type=float, default=4.0, help="ms")
    parser.add_argument("--t-a-row", type=float, default=500.0, help="us")
    parser.add_argument("--read", type=float, default=1500.0, help="us")
    parser.add_argument("--row", type=float, default=25.0, help="us")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds before measuring")
    parser.add_argument("--duration", type=float, default=3.0, help="seconds of measuring")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    args = parser.parse_args()
    args.attention = args.attention or list(range(1, args.devices))
    args.colocated_batch = args.colocated_batch or args.batch
    if not 1 <= min(args.attention) <= max(args.attention) < args.devices:
        parser.error(f"--attention {args.attention}: of {args.devices} devices, some have experts")
    if args.experts < args.devices:
        parser.error(f"--experts {args.experts}: give each of {args.devices} devices one")
    for m in args.m:
        if args.batch % m:
            parser.error(f"--batch {args.batch}: {m} micro-batches don't divide it")
    if args.colocated_batch % max(COLOCATED_MICRO_BATCHES):
        parser.error(f"--colocated-batch {args.colocated_batch}: give an even number")
    return args


def main() -> None:
    args = parse()
    started, found = monotonic(), medians(list(paces(args)))
    console = Console(highlight=False, width=max(100, Console().width))
    console.print(
        f"{hardware()}\nstage times set: attention {args.t_a:g} ms + {args.t_a_row:g} us a row, "
        f"experts {args.read:g} us each + {args.row:g} us a row, top {args.top_k} of "
        f"{args.experts}, {args.batch} sequences ({args.colocated_batch} colocated), "
        f"{args.layers} layers; medians of {args.rounds} rounds; {monotonic() - started:.0f} s"
    )
    print_table(console, found)
    if args.json:
        options = {k: v for k, v in vars(args).items() if k != "json"}
        report = {
            "hardware": hardware(),
            "options": options,
            "results": [asdict(pace) for pace in found],
        }
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(without_threads(main))
