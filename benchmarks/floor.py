"""What a decode step costs at least on these cores, and what it does cost.

    python benchmarks/floor.py
    python benchmarks/floor.py --model 1B --weights bfloat16 int8 --concurrency 8 32 64

A step reads every weight that it needs, the keys and values of its requests, and multiplies; its
floor is the slower of the two, max(bytes / bandwidth, operations / rate), as if each of them ran at
the best this machine shows and hid the other entirely. Columns:

    MB a/e    bytes that attention (head and cache included) and experts read, in 1e6; the experts
              are those that so many requests choose on average
    GF a/e    their multiplications and additions, in 1e9
    GB/s      measured: memory of that size read by one or by all cores, whichever is faster
    GF/s      measured: the experts' kernel on all cores with the same rows an expert, few enough of
              them for the cache
    floor     ms of a step by these
    floor m=2 the same with two micro-batches, each of which reads the weights
    step      ms measured, colocated with m = 1, decoding alone; and as a multiple of the floor
    outside   share of that run in which no kernel ran: scheduling, choosing tokens, telling them,
              the ends of the run
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from checkpoints import SHAPES, Shape, ensure_checkpoint
from contexts import decode, draw_prompts
from generation import generate
from kernels import Case, build_layer, reader, seconds
from measures import hardware
from rich.console import Console
from rich.table import Table

from megainfer import LLM
from megainfer.compute.cpu.kernels.experts import ExpertKernel
from megainfer.compute.experts import ExpertsShape

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0625}  # int8 with its scales
CACHED_EXPERTS = 2


@dataclass(frozen=True)
class Work:
    """What one side does in a step."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Row:
    """One precision at one concurrency. Times in ms, rates in 1e9 a second."""

    weights: str
    concurrency: int
    attention: Work
    experts: Work
    bandwidth: float
    rate: float
    floor: float
    floor_of_two: float
    step: float
    outside: float


def attention_work(shape: Shape, weights: str, requests: int, context: int) -> Work:
    """Projections, cache and head of one step."""
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    projections = shape.layers * shape.hidden * (heads + shape.heads * shape.head_dim)
    head = shape.hidden * shape.vocabulary
    cached = shape.layers * 2 * shape.kv_heads * shape.head_dim * context
    element = 4 if weights == "float32" else 2
    scores = shape.layers * 4 * shape.heads * shape.head_dim * context
    return Work(
        bytes=(projections + head) * WEIGHT_BYTES[weights] + requests * cached * element,
        operations=requests * (2 * (projections + head) + scores),
    )


def experts_work(shape: Shape, weights: str, requests: int) -> Work:
    """Choices are taken as uniform."""
    expert = 3 * shape.hidden * shape.intermediate
    missed = (1 - shape.top_k / shape.experts) ** requests
    chosen = shape.experts * (1 - missed)
    return Work(
        bytes=shape.layers * chosen * expert * WEIGHT_BYTES[weights],
        operations=shape.layers * requests * shape.top_k * 2 * expert,
    )


def bandwidth(num_bytes: int, threads: int, rounds: int) -> float:
    """1e9 bytes a second, of one core or of all, whichever gives more."""
    works = [reader(num_bytes, count) for count in {1, threads}]
    times = [[seconds(work) for work in works] for _ in range(rounds + 1)][1:]
    best: float = min(median(own) for own in zip(*times, strict=True))
    return num_bytes / best / 1e9


def expert_rate(shape: Shape, weights: str, requests: int, args: argparse.Namespace) -> float:
    """1e9 operations a second with as many rows an expert as these requests give."""
    rows = max(1, round(requests * shape.top_k / shape.experts))
    few = ExpertsShape(CACHED_EXPERTS, shape.hidden, shape.intermediate, CACHED_EXPERTS)
    layer = build_layer(ExpertKernel(few, weights, args.threads))
    case = Case(layer, few, rows, torch.float32)
    case.run()
    return case.flops / min(seconds(case.run) for _ in range(20 * args.rounds)) / 1e9


def floor_ms(works: list[Work], bandwidth: float, rate: float) -> float:
    num_bytes, operations = sum(w.bytes for w in works), sum(w.operations for w in works)
    return 1e3 * max(num_bytes / bandwidth, operations / rate) / 1e9


def measured_steps(
    model: str, shape: Shape, weights: str, args: argparse.Namespace
) -> list[tuple[float, float]]:
    """ms of a step at each concurrency, and the share of the run outside kernels."""
    options = {
        "dtype": "float32" if weights == "float32" else "bfloat16",
        "expert_dtype": weights,
        "attention_dtype": weights,
        "max_model_len": args.prompt_tokens + args.output_tokens,
        "max_num_seqs": max(args.concurrency),
    }
    steps = []
    with LLM(model, colocated=True, **options) as llm:
        for requests in args.concurrency:
            prompts = draw_prompts(args.prompt_tokens, requests, shape.vocabulary)
            generate(llm, prompts, args.output_tokens)
            paces = [decode(llm, prompts, args.output_tokens) for _ in range(args.rounds)]
            rate = median(pace.tokens_per_second for pace in paces)
            steps.append((1e3 * requests / rate, median(pace.outside for pace in paces)))
    return steps


def both_sides(shape: Shape, weights: str, requests: int, context: int) -> list[Work]:
    return [
        attention_work(shape, weights, requests, context),
        experts_work(shape, weights, requests),
    ]


def row_of(
    shape: Shape,
    weights: str,
    requests: int,
    step: tuple[float, float],
    args: argparse.Namespace,
) -> Row:
    context = args.prompt_tokens + args.output_tokens // 2
    sides = both_sides(shape, weights, requests, context)
    two = 2 * both_sides(shape, weights, requests // 2, context) if requests > 1 else sides
    speed = bandwidth(int(sum(side.bytes for side in sides)), args.threads, args.rounds)
    rate = expert_rate(shape, weights, requests, args)
    return Row(
        weights=weights,
        concurrency=requests,
        attention=sides[0],
        experts=sides[1],
        bandwidth=speed,
        rate=rate,
        floor=floor_ms(sides, speed, rate),
        floor_of_two=floor_ms(two, speed, rate),
        step=step[0],
        outside=step[1],
    )


def rows_of(model: str, shape: Shape, weights: str, args: argparse.Namespace) -> list[Row]:
    steps = measured_steps(model, shape, weights, args)
    return [
        row_of(shape, weights, requests, step, args)
        for requests, step in zip(args.concurrency, steps, strict=True)
    ]


def print_table(console: Console, rows: list[Row]) -> None:
    table = Table()
    for title in (
        "weights",
        "B",
        "MB a/e",
        "GF a/e",
        "GB/s",
        "GF/s",
        "floor",
        "floor m=2",
        "step",
        "outside",
    ):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.weights,
            str(row.concurrency),
            f"{row.attention.bytes / 1e6:.0f} / {row.experts.bytes / 1e6:.0f}",
            f"{row.attention.operations / 1e9:.2f} / {row.experts.operations / 1e9:.2f}",
            f"{row.bandwidth:.1f}",
            f"{row.rate:.0f}",
            f"{row.floor:.2f}",
            f"{row.floor_of_two:.2f}",
            f"{row.step:.2f} ({row.step / row.floor:.2f}x)",
            f"{row.outside:.0%}",
        )
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="0.17B", choices=list(SHAPES))
    parser.add_argument("--weights", nargs="+", default=list(WEIGHT_BYTES), choices=WEIGHT_BYTES)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="cores that are there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results there as well")
    return parser.parse_args()


def main() -> None:
    args, shape = (parsed := parse()), SHAPES[parsed.model]
    console = Console(highlight=False, width=max(110, Console().width))
    torch.set_num_threads(1)  # its workers would stay awake on the cores that are measured
    with tempfile.TemporaryDirectory() as scratch:
        model = str(ensure_checkpoint(args.model, Path(scratch)))
        rows = [row for weights in args.weights for row in rows_of(model, shape, weights, args)]
    console.print(f"{hardware()}\n{args.model}, {args.prompt_tokens} + {args.output_tokens} tokens")
    print_table(console, rows)
    if args.json:
        args.json.write_text(
            json.dumps({"hardware": hardware(), "results": [asdict(r) for r in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
