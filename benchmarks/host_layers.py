"""What a layer costs an instance on one host, and across two: network namespaces here.

    python benchmarks/host_layers.py
    python benchmarks/host_layers.py --tokens 32 --rounds 1 --layouts shm across

Two streams of single tokens, so that both attention nodes of 2 x 2 decode all the time; each MoE
layer of a token is a dispatch to both expert nodes and their replies. Only root can make
namespaces. Layouts:

    shm      all nodes on one host, through memory
    dist     all nodes on one host, through its network
    beside   on each of two hosts one node of each role: one pair by memory, the other by network
    across   attention nodes on one host, expert nodes on the other: all by network
    ranks    1 x 1, nodes of two ranks, all on one host, through memory
    parted   the same, the second rank of each on another host: orders and rows by network

Columns:

    a token   ms between two tokens of a stream, median of all
    a layer   us: the same for each of the layers
    more      us that a layer takes beyond the first layout's
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

from checkpoints import SHAPES, ensure_checkpoint, with_tokenizer
from measures import hardware
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.agents import AgentProcess, serve_on, wait_until_ready, write_token
from tests.support.namespaces import network
from tests.support.served import Served, serving, stream

NODES = ("--attn-gpus", "2", "--ffn-gpus", "2")
RANKED = ("--attn-gpus", "1", "--ffn-gpus", "1", "--attn-tp", "2", "--ffn-tp", "2")
EACH = ("--micro-batches", "1", "--cores", "shared", "--max-model-len", "1024")
PLACES = {
    "beside": ("attention.0=left", "attention.1=right", "expert.0=left", "expert.1=right"),
    "across": ("attention.0=left", "attention.1=left", "expert.0=right", "expert.1=right"),
    "parted": ("attention.0=left", "attention.0.1=right", "expert.0=left", "expert.0.1=right"),
}
OF_RANKS = ("ranks", "parted")
LAYOUTS = ("shm", "dist", "beside", "across", *OF_RANKS)
STREAMS = 2


@dataclass(frozen=True)
class Cost:
    layout: str
    token_ms: float
    layer_us: float


@contextmanager
def served_as(layout: str, model: Path, folder: Path) -> Iterator[Served]:
    nodes = RANKED if layout in OF_RANKS else NODES
    options = [str(model), *nodes, *EACH, "--kv-cache-memory", "64MiB"]
    road = "shm" if layout in OF_RANKS else layout
    with ExitStack() as stack:
        if layout not in PLACES:
            yield stack.enter_context(serving(*options, "--m2n", road))
            return
        net, token = stack.enter_context(network(2)), write_token(folder)
        agents = [
            AgentProcess(net, host, name, token)
            for host, name in zip(net.hosts, ("left", "right"), strict=True)
        ]
        for agent in agents:
            stack.callback(agent.kill)
        places = [word for place in PLACES[layout] for word in ("--place", place)]
        served = serve_on(net, token, *options, *places)
        stack.callback(served.kill)
        wait_until_ready(served, agents)
        yield served


def gaps(served: Served, tokens: int) -> list[float]:
    """Seconds between two tokens of a stream, but for the first ones."""
    events = stream(served, [1, 2, 3], tokens, temperature=0)
    times = [perf_counter() for event in events if event.get("choices")]
    skipped = len(times) // 4
    return [after - before for before, after in pairwise(times[skipped:])]


def measured(layout: str, model: Path, args: argparse.Namespace, folder: Path) -> Cost:
    found: list[float] = []
    with served_as(layout, model, folder) as served, ThreadPoolExecutor(STREAMS) as pool:
        for _ in range(args.rounds):
            streams = [pool.submit(gaps, served, args.tokens) for _ in range(STREAMS)]
            found += [gap for each in streams for gap in each.result()]
    seconds = median(found)
    return Cost(layout, seconds * 1e3, seconds / SHAPES[args.model].layers * 1e6)


def print_table(console: Console, costs: Sequence[Cost]) -> None:
    table = Table("layout", "a token, ms", "a layer, us", "more, us")
    for cost in costs:
        more = cost.layer_us - costs[0].layer_us
        row = f"{cost.token_ms:.2f}", f"{cost.layer_us:.0f}", f"{more:+.0f}"
        table.add_row(cost.layout, *row)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--tokens", type=int, default=200, help="of a stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=SHAPES, default="0.17B")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    args = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = with_tokenizer(ensure_checkpoint(args.model, folder), folder)
        costs = [measured(layout, model, args, folder) for layout in args.layouts]
    console.print(f"{hardware()}\n{STREAMS} streams, {args.model}")
    print_table(console, costs)
    if args.json:
        report = {"hardware": hardware(), "results": [asdict(cost) for cost in costs]}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
