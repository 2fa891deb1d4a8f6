"""Throughput end to end: disaggregated beside colocated, and beside other engines.

    python benchmarks/throughput.py --model 0.17B --concurrency 1 8 32
    python benchmarks/throughput.py --model path/to/model --attn-gpus 2 --ffn-gpus 2 --json out.json
    python benchmarks/prepare_peers.py --folder DIR
    python benchmarks/throughput.py --peers DIR --precision bf16 int8 --micro-batches 1 2 auto
    python benchmarks/throughput.py --peers DIR --http

Every engine is a process of its own with all cores, and only the one whose turn it is runs: the
others are stopped. For every load, rounds alternate between the engines of a precision; the tables
show medians. A "GPU" is a process where there is no GPU; an engine in one process has the cores of
all the others together, so its tokens are divided by as many. Precisions:

    f32    everything in float32
    bf16   everything in bfloat16
    int8   our int8 experts and attention weights; llama.cpp's Q8_0
    q4     our int4 experts and attention weights; llama.cpp's Q4_0 and Q4_K_M

Columns:

    tok/s     generated tokens a second over the whole run, prefill included
    decode    generated tokens a second after the first: (n - 1) * B / (t(n) - t(1))
    prefill   prompt tokens a second of a run that generates one token each
    ttft      with --http: ms from sending all requests to a request's first token, the median
    per GPU   tok/s by number of attention and expert nodes
    m         micro-batches that take turns
    T_a, T_e  ms that a micro-batch's layer takes on an attention and on an expert node
    T_c       ms of one transfer, from the beginning of the send to a waiting receiver noticing
    idle a/e  share of the time in which the nodes of a role had nothing to do
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from checkpoints import SHAPES, ensure_checkpoint, with_tokenizer
from measures import hardware
from peers.contest import Contest, Outcome
from peers.entrants import DTYPES, PRECISIONS, Entrant, Work, others, own
from peers.environments import PEERS, PreparationError
from peers.measurement import Load
from peers.offline import OfflineEngine
from peers.served import ServedEngine
from peers.tables import json_rows, ratios, ratios_table, results_table
from rich.console import Console

GIVEN = "as given"
"""In place of a precision: --dtype and its kin say it."""
OWN_TYPES = ("dtype", "expert_dtype", "attention_dtype")
NARROW = {"int8": "int8", "q4": "int4"}
"""What our weights are kept in, by precision, beside which --dtype computes."""


def own_types(args: argparse.Namespace, precision: str) -> dict[str, str]:
    """Options of `LLM`."""
    if precision == GIVEN:
        return {name: getattr(args, name) for name in OWN_TYPES}
    if (kept := NARROW.get(precision)) is not None:
        return {"dtype": args.dtype, "expert_dtype": kept, "attention_dtype": kept}
    return dict.fromkeys(OWN_TYPES, DTYPES[precision])


def own_entrants(args: argparse.Namespace, work: Work, precision: str) -> Iterator[Entrant]:
    """One for each number of micro-batches, and the colocated one."""
    options = {**own_types(args, precision), "kernels": args.kernels}
    nodes = {"attn_gpus": args.attn_gpus, "ffn_gpus": args.ffn_gpus}
    for m in dict.fromkeys(args.micro_batches):
        name = f"{args.attn_gpus}A{args.ffn_gpus}E m={m}"
        yield own(work, name, precision, {**options, **nodes, "micro_batches": m})
    yield own(work, "colocated", precision, {**options, "colocated": True})


def entrants(args: argparse.Namespace, work: Work, precision: str) -> list[Entrant]:
    found = list(own_entrants(args, work, precision))
    if args.peers:
        found += others(work, args.peers, args.peer_names, precision)
    return found


def measure(
    args: argparse.Namespace, folder: Path, loads: Sequence[Load]
) -> Iterator[list[Outcome]]:
    """A precision at a time. folder: where checkpoints are written that aren't there."""
    model = ensure_checkpoint(args.model, folder) if args.model in SHAPES else Path(args.model)
    work = Work(
        model,
        with_tokenizer(model, folder),
        sequences=max(args.concurrency),
        tokens=args.prompt_tokens + args.output_tokens,
        http=args.http,
    )
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    engine = ServedEngine if args.http else OfflineEngine
    contest = Contest(
        partial(engine, vocabulary=vocabulary, limit=args.limit), loads, args.resident
    )
    for precision in args.precision:
        yield contest.run(entrants(args, work, precision), args.rounds)


def report(args: argparse.Namespace, outcomes: Sequence[Outcome], loads: Sequence[Load]) -> None:
    gpus = args.attn_gpus + args.ffn_gpus
    console = Console(highlight=False, width=max(130, Console().width))
    console.print(
        f"{hardware()}\n{args.model}, {', '.join(args.precision)}, "
        f"{'HTTP' if args.http else 'offline'}, {args.prompt_tokens} + {args.output_tokens} "
        f"tokens, medians of {args.rounds} rounds"
    )
    console.print(results_table(outcomes, loads, gpus))
    if (table := ratios_table(outcomes, loads)) is not None:
        console.print(table)
    for outcome in outcomes:
        if outcome.failure is not None:
            console.print(f"{outcome.entrant.name}, {outcome.entrant.precision}: {outcome.failure}")


def write_json(path: Path, gpus: int, outcomes: Sequence[Outcome], loads: Sequence[Load]) -> None:
    document = {
        "hardware": hardware(),
        "results": list(json_rows(outcomes, gpus)),
        "ratios": list(ratios(outcomes, loads)),
    }
    path.write_text(json.dumps(document, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_own_options(parser)
    add_loads(parser)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="all, with --peers")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="made by prepare_peers.py")
    parser.add_argument("--peer-names", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--http", action="store_true", help="through each engine's own server")
    parser.add_argument(
        "--resident", type=int, default=16, help="engines in memory at a time; see Contest"
    )
    parser.add_argument("--limit", type=float, default=600, help="seconds for a start or a run")
    parser.add_argument(
        "--json", type=Path, help="write the results there as well, a precision at a time"
    )
    args = parser.parse_args()
    complete(parser, args)
    return args


def add_own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="0.17B", help=f"folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--attn-gpus", type=int, default=1)
    parser.add_argument("--ffn-gpus", type=int, default=1)
    parser.add_argument("--micro-batches", nargs="+", default=["auto"], help="an instance for each")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--expert-dtype", default="auto")
    parser.add_argument("--attention-dtype", default="auto")
    parser.add_argument("--kernels", default="auto")


def add_loads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)


def complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What one option means for another."""
    if args.peers:
        args.peers = args.peers.expanduser().resolve()
        args.precision = args.precision or list(PRECISIONS)
    if not args.precision:
        args.precision = [GIVEN]
    elif args.expert_dtype != "auto" or args.attention_dtype != "auto":
        parser.error("--expert-dtype and --attention-dtype say what --precision says; give one")
    args.precision.sort(key=[*PRECISIONS, GIVEN].index)


def main() -> None:
    args = parse()
    loads = [Load(b, args.prompt_tokens, args.output_tokens) for b in args.concurrency]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = args.peers / "models" if args.peers else Path(scratch)
            for more in measure(args, folder, loads):
                outcomes += more
                if args.json:
                    write_json(args.json, args.attn_gpus + args.ffn_gpus, outcomes, loads)
        except PreparationError as error:
            sys.exit(str(error))
    report(args, outcomes, loads)


if __name__ == "__main__":
    main()
