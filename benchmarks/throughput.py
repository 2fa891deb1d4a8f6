"""Throughput end to end, disaggregated beside colocated, on the same machine in the same run.

    python benchmarks/throughput.py --model 0.17B --concurrency 1 8 32
    python benchmarks/throughput.py --model path/to/model --attn-gpus 2 --ffn-gpus 2 --json out.json

For every concurrency, rounds alternate between the instances; the table shows medians. A "GPU" is
a process where there is no GPU; the colocated process has the cores of all the others together,
so its tokens are divided by as many. Columns:

    tok/s     generated tokens a second over the whole run, prefill included
    decode    generated tokens a second after the first: (n - 1) * B / (t(n) - t(1))
    prefill   prompt tokens a second of a run that generates one token each
    per GPU   tok/s by number of attention and expert nodes
    T_a, T_e  ms that a micro-batch's layer takes on an attention and on an expert node
    T_c       ms of one transfer, from the beginning of the send to a waiting receiver noticing
    idle a/e  share of the time in which the nodes of a role had nothing to do
"""

import argparse
import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import monotonic

from checkpoints import SHAPES, ensure_checkpoint
from measures import (
    T_A_KINDS,
    T_E_KINDS,
    difference,
    hardware,
    idle_share,
    mean_of,
    mean_transfer,
    of_role,
)
from rich.console import Console
from rich.table import Table

from megainfer import LLM, SamplingParams


@dataclass(frozen=True)
class Load:
    """Requests that are sent at once, with random prompts."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Result:
    """One instance under one load: a round, or the medians of several. Times in ms."""

    tokens_per_second: float
    decode_per_second: float
    prefill_per_second: float
    per_gpu: float
    t_a: float
    t_e: float
    t_c: float
    idle_attention: float
    idle_expert: float


def run_round(llm: LLM, load: Load, vocabulary: int, seed: int, gpus: int) -> Result:
    """One load once to its first tokens, and once whole, each with fresh prompts."""
    first = run_load(llm, load, vocabulary, seed, 1)
    before, started = llm.stats(), monotonic()
    whole = run_load(llm, load, vocabulary, seed + 1, load.output_tokens)
    after, elapsed = llm.stats(), monotonic() - started
    tokens = load.concurrency * load.output_tokens
    delta = {name: difference(before[name], after[name]) for name in after}
    attention, expert = of_role(delta, "attention"), of_role(delta, "expert")
    return Result(
        tokens_per_second=tokens / whole,
        decode_per_second=(tokens - load.concurrency) / max(whole - first, 1e-9),
        prefill_per_second=load.concurrency * load.prompt_tokens / first,
        per_gpu=tokens / whole / gpus,
        t_a=1e3 * mean_of(attention, T_A_KINDS, "dispatch"),
        t_e=1e3 * mean_of(expert, T_E_KINDS, "expert"),
        t_c=1e3 * mean_transfer(attention + expert),
        idle_attention=idle_share(attention, elapsed),
        idle_expert=idle_share(expert, elapsed),
    )


def run_load(llm: LLM, load: Load, vocabulary: int, seed: int, output_tokens: int) -> float:
    """Seconds from sending all requests to having all tokens."""
    draw = random.Random(seed)
    prompts: list[str | list[int]] = [
        [draw.randrange(vocabulary) for _ in range(load.prompt_tokens)]
        for _ in range(load.concurrency)
    ]
    params = SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
    started = monotonic()
    llm.generate(prompts, params, progress=False)
    return monotonic() - started


def medians(results: list[Result]) -> Result:
    rows = [asdict(result) for result in results]
    return Result(**{name: median(row[name] for row in rows) for name in rows[0]})


def measure(
    instances: Mapping[str, LLM], loads: list[Load], vocabulary: int, rounds: int, gpus: int
) -> dict[tuple[Load, str], Result]:
    """Medians by load and instance; a first round of each is warm-up and not counted."""
    found: dict[tuple[Load, str], Result] = {}
    for load in loads:
        results: dict[str, list[Result]] = {name: [] for name in instances}
        for number in range(rounds + 1):
            for name, llm in instances.items():
                result = run_round(llm, load, vocabulary, 2 * number, gpus)
                if number:
                    results[name].append(result)
        found |= {(load, name): medians(rows) for name, rows in results.items()}
    return found


def print_table(console: Console, found: Mapping[tuple[Load, str], Result]) -> None:
    table = Table()
    for title in ("B", "instance", "tok/s", "decode", "prefill", "per GPU"):
        table.add_column(title, justify="right")
    for title in ("T_a", "T_e", "T_c", "idle a/e"):
        table.add_column(title, justify="right")
    for (load, name), result in found.items():
        table.add_row(
            str(load.concurrency),
            name,
            *(f"{value:.1f}" for value in list(asdict(result).values())[:4]),
            *(f"{value:.3f}" for value in (result.t_a, result.t_e, result.t_c)),
            f"{result.idle_attention:.0%} / {result.idle_expert:.0%}",
        )
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="0.17B", help=f"folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--attn-gpus", type=int, default=1)
    parser.add_argument("--ffn-gpus", type=int, default=1)
    parser.add_argument("--micro-batches", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results there as well")
    return parser.parse_args()


def main() -> None:
    args = parse()
    console = Console(highlight=False, width=max(100, Console().width))
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model
        if model in SHAPES:
            model = str(ensure_checkpoint(model, Path(scratch)))
        vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
        options = {
            "dtype": args.dtype,
            "max_model_len": args.prompt_tokens + args.output_tokens,
            "max_num_seqs": max(args.concurrency),
            "prefix_cache": False,
        }
        with (
            LLM(
                model,
                attn_gpus=args.attn_gpus,
                ffn_gpus=args.ffn_gpus,
                micro_batches=args.micro_batches,
                **options,
            ) as apart,
            LLM(model, colocated=True, **options) as together,
        ):
            name = f"{args.attn_gpus}A{args.ffn_gpus}E m={apart.micro_batches}"
            instances = {name: apart, "colocated": together}
            loads = [Load(b, args.prompt_tokens, args.output_tokens) for b in args.concurrency]
            found = measure(
                instances, loads, vocabulary, args.rounds, args.attn_gpus + args.ffn_gpus
            )
    console.print(
        f"{hardware()}\n{args.model}, dtype {args.dtype}, {args.prompt_tokens} + "
        f"{args.output_tokens} tokens, medians of {args.rounds} rounds"
    )
    print_table(console, found)
    if args.json:
        rows = [{**asdict(load), "instance": n, **asdict(r)} for (load, n), r in found.items()]
        args.json.write_text(json.dumps({"hardware": hardware(), "results": rows}, indent=1))


if __name__ == "__main__":
    main()
