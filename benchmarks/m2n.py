"""M2N beside torch.distributed's gloo: the same exchange, on the same cores, in the same run.

    python benchmarks/m2n.py
    python benchmarks/m2n.py --attention 2 --expert 2 --sizes 4 256 --spin 0 50 --json out.json
    python benchmarks/m2n.py --transport shm dist --spin 0

M attention and N expert processes; every attention process sends every expert process a message of
hidden rows with their ids and weights. In an exchange one way the message is read and acknowledged;
in a dispatch-combine the reply is as large and is added up. (Over `dist` a reply's rows travel one
way too, so that its MB/s are of both directions and gloo's are not.) Senders write every byte,
receivers read every byte, and check them. Rounds alternate between the roads. Columns:

    size      bytes of hidden rows in a message
    median    us from the beginning of the send until the receiver has read it all (one way), or
    P99       until all replies are combined, with one message in flight; medians of the rounds
    MB/s      payload of one direction with --window messages in flight, median of the rounds
    less      how much lower than gloo's the median latency is
    more      how many times gloo's throughput
"""

import argparse
import json
import multiprocessing
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles

from m2n_processes import (
    GLOO,
    TIMEOUT_SECONDS,
    Exchange,
    Setup,
    Times,
    latencies,
    process_main,
    road_name,
)
from measures import hardware
from rich.console import Console
from rich.table import Table

from megainfer.errors import NodeDied
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.roads import PortOptions, Road

HIDDEN_SIZE = 512  # float32, so a row is 2 KiB
ROW_KIB = 2
TOP_K = 4
WARM_UP = 5  # messages at the beginning of an exchange that don't count
BYTES_A_ROUND = 64 << 20


@dataclass(frozen=True)
class Result:
    """One road, one size, one exchange. Latencies in us; all are medians of the rounds, but
    `best_us`, the lowest of the rounds' medians."""

    exchange: str
    size: int
    road: str
    median_us: float
    p99_us: float
    best_us: float
    mb_per_second: float
    messages: int


class Cluster:
    """The processes and a pipe to each; attention processes first."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        context = multiprocessing.get_context("fork")
        size = setup.geometry.num_attention + setup.geometry.num_expert
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=process_main, args=(setup, rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, exchange: Exchange) -> tuple[list[Times], list[Times]]:
        """What attention and expert processes have noted."""
        for pipe in self._pipes:
            pipe.send(exchange)
        times = [self._answer(pipe) for pipe in self._pipes]
        first_expert = self.setup.geometry.num_attention
        return times[:first_expert], times[first_expert:]

    def _answer(self, pipe: Connection) -> Times:
        if not pipe.poll(2 * TIMEOUT_SECONDS):
            raise NodeDied("a process of the benchmark does not answer")
        times = pipe.recv()
        assert isinstance(times, Times)
        return times

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(TIMEOUT_SECONDS)

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def cluster(setup: Setup) -> Iterator[Cluster]:
    running = Cluster(setup)
    try:
        yield running
        running.close()
    finally:
        running.kill()


def measure(
    running: Cluster, exchange: Exchange, window: int, rounds: int
) -> Iterator[tuple[str, list[int], float]]:
    """(road, ns of latency, MB/s) of each round and road, the roads in turn."""
    roads = [*map(road_name, running.setup.roads), GLOO]
    for number in range(rounds):
        for road in roads if number % 2 else reversed(roads):
            alone = Exchange(road, exchange.rows, exchange.combine, 1, exchange.count)
            nanoseconds = latencies(alone, *running.run(alone), skip=WARM_UP)
            crowd = Exchange(road, exchange.rows, exchange.combine, window, exchange.count)
            yield road, nanoseconds, throughput(crowd, *running.run(crowd))


def throughput(exchange: Exchange, attention: Sequence[Times], experts: Sequence[Times]) -> float:
    """MB/s from the first message that counts to the last one's acknowledgement or reply."""
    started = min(own.started[WARM_UP] for own in attention)
    ended = max(max(own.ended) for own in attention)
    messages = (exchange.count - WARM_UP) * len(attention) * len(experts)
    return messages * exchange.rows * ROW_KIB * 1024 / (ended - started) * 1e3


def results_of(
    running: Cluster, rows: int, combine: bool, args: argparse.Namespace
) -> list[Result]:
    size = rows * ROW_KIB * 1024
    count = WARM_UP + max(args.messages // 10, min(args.messages, BYTES_A_ROUND // size))
    exchange = Exchange("", rows, combine, 1, count)
    found: dict[str, list[tuple[list[int], float]]] = {}
    for road, nanoseconds, rate in measure(running, exchange, args.window, args.rounds):
        found.setdefault(road, []).append((nanoseconds, rate))
    kind = "dispatch-combine" if combine else "one-way"
    return [summary(kind, size, road, found[road]) for road in found]


def summary(kind: str, size: int, road: str, found: list[tuple[list[int], float]]) -> Result:
    medians = [median(nanoseconds) / 1e3 for nanoseconds, _ in found]
    tails = [quantiles(nanoseconds, n=100)[-1] / 1e3 for nanoseconds, _ in found]
    return Result(
        exchange=kind,
        size=size,
        road=road,
        median_us=median(medians),
        p99_us=median(tails),
        best_us=min(medians),
        mb_per_second=median(rate for _, rate in found),
        messages=sum(len(nanoseconds) for nanoseconds, _ in found),
    )


def print_table(console: Console, results: Sequence[Result]) -> None:
    table = Table()
    for title in ("exchange", "size", "road", "median us", "P99 us", "best us", "MB/s"):
        table.add_column(title, justify="right")
    for title in ("less", "more"):
        table.add_column(title, justify="right")
    gloo = {(r.exchange, r.size): r for r in results if r.road == GLOO}
    for r in sorted(results, key=lambda r: (r.exchange, r.size, r.road)):
        beside = gloo[r.exchange, r.size]
        table.add_row(
            r.exchange,
            f"{r.size // 1024}K",
            r.road,
            *(f"{value:.0f}" for value in (r.median_us, r.p99_us, r.best_us, r.mb_per_second)),
            f"{1 - r.median_us / beside.median_us:.0%}",
            f"{r.mb_per_second / beside.mb_per_second:.1f}x",
        )
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--attention", type=int, default=1, help="attention processes (M)")
    parser.add_argument("--expert", type=int, default=1, help="expert processes (N)")
    sizes = [2, 4, 16, 64, 256, 1024, 8192]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="KiB, even numbers")
    parser.add_argument(
        "--transport", choices=("shm", "dist"), nargs="+", default=["shm"], help="M2N's roads"
    )
    parser.add_argument(
        "--spin", type=float, nargs="+", default=[0, 1000], help="us; a road of shm each"
    )
    parser.add_argument("--python", action="store_true", help="shm without C++ as well")
    parser.add_argument("--window", type=int, default=4, help="messages in flight for MB/s")
    parser.add_argument("--messages", type=int, default=300, help="most messages in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pin", action="store_true", help="pin processes to cores, in turn")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    args = parser.parse_args()
    if any(size < ROW_KIB or size % ROW_KIB for size in args.sizes):
        parser.error(f"--sizes {args.sizes}: give whole rows of {ROW_KIB} KiB")
    if args.messages < 10:
        parser.error(f"--messages {args.messages}: a median and a P99 take at least 10")
    return args


def setup_of(args: argparse.Namespace, store: str) -> Setup:
    rows = max(args.sizes) // ROW_KIB
    geometry = Geometry(
        args.attention, args.expert, args.window, rows, HIDDEN_SIZE, TOP_K, "float32"
    )
    return Setup(
        geometry=geometry,
        store=store,
        roads=tuple(road for kind in args.transport for road in roads_of(kind, args)),
        cores=tuple(sorted(os.sched_getaffinity(0))) if args.pin else None,
    )


def roads_of(kind: str, args: argparse.Namespace) -> Iterator[Road]:
    if kind == "dist":
        yield Road(kind, f"bench-{secrets.token_hex(8)}", key=secrets.token_hex(32))
        return
    options = [PortOptions(spin / 1e6) for spin in args.spin]
    if args.python:
        options.append(PortOptions(mover="plain"))
    for each in options:
        yield Road(kind, f"bench-{secrets.token_hex(8)}", each)


def main() -> None:
    args = parse()
    console = Console(highlight=False, width=max(110, Console().width))
    with (
        tempfile.TemporaryDirectory() as scratch,
        cluster(setup_of(args, f"{scratch}/store")) as running,
    ):
        results = [
            result
            for combine in (False, True)
            for size in args.sizes
            for result in results_of(running, size // ROW_KIB, combine, args)
        ]
    title = (
        f"{hardware()}\n{args.attention} x {args.expert} processes"
        f"{', pinned' if args.pin else ''}, medians of {args.rounds} rounds in turn"
    )
    console.print(title)
    print_table(console, results)
    if args.json:
        options = {k: v for k, v in vars(args).items() if k != "json"}
        rows = [asdict(result) for result in results]
        report = {"hardware": hardware(), "options": options, "results": rows}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
