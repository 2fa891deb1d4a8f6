"""Disaggregated beside colocated over context lengths, on the same cores in the same run.

    python benchmarks/contexts.py --plot contexts.png
    python benchmarks/contexts.py --contexts 64 1024 4096 --concurrency 16 --micro-batches 1 2 3

For every context length, requests with so many tokens each decode together, each with keys and
values of its own; prompts are in the prefix cache by then, so that only decoding is measured: the
time to the first tokens is taken off the time to all. Rounds alternate between the instances, and
the table shows medians, of the shares too. Columns:

    context   tokens before the first generated one
    tok/s     generated tokens a second, decoding alone
    of coloc. as a share of the colocated instance's in the same round
    of best   of an automatic m: as a share of the best fixed one's in the same round
    T_a, T_e  ms that a micro-batch's layer takes on an attention and on an expert node
    T_c       ms of one transfer, from the beginning of the send to a waiting receiver noticing
    idle a/e  share of the time in which the nodes of a role had nothing to do
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import monotonic

from checkpoints import SHAPES, ensure_checkpoint
from generation import generate
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
from peers.measurement import Load
from rich.console import Console
from rich.table import Table

from megainfer import LLM

COLOCATED = "colocated"
AUTO = "auto"
NAN = float("nan")


@dataclass(frozen=True)
class Pace:
    """One instance at one context: a round, or the medians of several. Times in ms."""

    tokens_per_second: float
    of_colocated: float
    of_best_fixed: float
    t_a: float
    t_e: float
    t_c: float
    idle_attention: float
    idle_expert: float
    outside: float  # of the time of a colocated instance: the share outside its kernels


def draw_prompts(context: int, count: int, vocabulary: int) -> list[list[int]]:
    return Load(count, context, 0).prompts(vocabulary, seed=context)


def decode(llm: LLM, prompts: Sequence[Sequence[int]], tokens: int) -> Pace:
    """Decoding alone, the prompts being cached."""
    first = generate(llm, prompts, 1)
    before, started = llm.stats(), monotonic()
    whole = generate(llm, prompts, tokens)
    after, elapsed = llm.stats(), monotonic() - started
    delta = {name: difference(before[name], after[name]) for name in after}
    attention, expert = of_role(delta, "attention"), of_role(delta, "expert")
    return Pace(
        tokens_per_second=len(prompts) * (tokens - 1) / max(whole - first, 1e-9),
        of_colocated=NAN,
        of_best_fixed=NAN,
        t_a=1e3 * mean_of(attention, T_A_KINDS, "combine"),
        t_e=1e3 * mean_of(expert, T_E_KINDS, "expert"),
        t_c=1e3 * mean_transfer(attention + expert),
        idle_attention=idle_share(attention, elapsed),
        idle_expert=idle_share(expert, elapsed),
        outside=1 - kernel_seconds(attention + expert) / elapsed,
    )


def kernel_seconds(nodes: Sequence[Mapping[str, float]]) -> float:
    """What native calls took, but for that of choosing tokens."""
    kinds = ("attention", "combine", "expert", "head")
    return sum(own.get(f"{kind}_seconds", 0.0) for own in nodes for kind in kinds)


def compare(paces: Mapping[str, Pace]) -> dict[str, Pace]:
    """One round's, with their shares."""
    rates = {name: pace.tokens_per_second for name, pace in paces.items()}
    fixed = [rate for name, rate in rates.items() if name not in (COLOCATED, AUTO)]
    together, best = rates.get(COLOCATED, NAN), max(fixed, default=NAN)
    return {
        name: Pace(
            **asdict(pace)
            | {
                "of_colocated": rates[name] / together,
                "of_best_fixed": rates[name] / best if name == AUTO else NAN,
            }
        )
        for name, pace in paces.items()
    }


def medians(paces: Sequence[Pace]) -> Pace:
    rows = [asdict(pace) for pace in paces]
    return Pace(**{name: median(row[name] for row in rows) for name in rows[0]})


def measure(
    instances: Mapping[str, LLM], context: int, vocabulary: int, args: argparse.Namespace
) -> dict[str, Pace]:
    prompts = draw_prompts(context, args.concurrency, vocabulary)
    for llm in instances.values():
        llm.reset_prefix_cache()
        generate(llm, prompts, 1)  # into the prefix cache
        generate(llm, prompts, args.warm_up_tokens)  # an automatic m finds its number
    rounds: dict[str, list[Pace]] = {name: [] for name in instances}
    for _ in range(args.rounds):
        found = {name: decode(llm, prompts, args.tokens) for name, llm in instances.items()}
        for name, pace in compare(found).items():
            rounds[name].append(pace)
    return {name: medians(paces) for name, paces in rounds.items()}


def open_instances(model: str, stack: ExitStack, args: argparse.Namespace) -> dict[str, LLM]:
    options = {
        "dtype": args.dtype,
        "expert_dtype": args.expert_dtype,
        "attention_dtype": args.attention_dtype,
        "max_model_len": max(args.contexts) + max(args.tokens, args.warm_up_tokens),
        "max_num_seqs": args.concurrency,
    }
    instances = {COLOCATED: stack.enter_context(LLM(model, colocated=True, **options))}
    for m in args.micro_batches:
        name = AUTO if m == "auto" else f"m={m}"
        instances[name] = stack.enter_context(LLM(model, micro_batches=m, **options))
    return instances


# --- report --------------------------------------------------------------------------------------


def print_table(console: Console, found: Mapping[int, Mapping[str, Pace]]) -> None:
    table = Table()
    for title in ("context", "instance", "tok/s", "of coloc.", "of best"):
        table.add_column(title, justify="right")
    for title in ("T_a", "T_e", "T_c", "idle a/e"):
        table.add_column(title, justify="right")
    for context, paces in found.items():
        for name, pace in paces.items():
            table.add_row(
                str(context),
                name,
                f"{pace.tokens_per_second:.0f}",
                f"{pace.of_colocated:.2f}",
                "-" if pace.of_best_fixed != pace.of_best_fixed else f"{pace.of_best_fixed:.2f}",
                *(f"{value:.3f}" for value in (pace.t_a, pace.t_e, pace.t_c)),
                f"{pace.idle_attention:.0%} / {pace.idle_expert:.0%}",
            )
    console.print(table)


def write_plot(path: Path, title: str, found: Mapping[int, Mapping[str, Pace]]) -> None:
    """Shares of the colocated rate over context, and the stage times below."""
    from matplotlib.figure import Figure

    contexts = list(found)
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in found[contexts[0]]:
        style = "k--" if name == COLOCATED else "o-"
        shares = [found[context][name].of_colocated for context in contexts]
        above.plot(contexts, shares, style, label=name)
    for stage, label in (("t_a", "T_a"), ("t_e", "T_e")):
        times = [getattr(found[context][COLOCATED], stage) for context in contexts]
        below.plot(contexts, times, "o-", label=f"{label}, colocated")
    above.set_ylabel("decode tokens/s, as a share of colocated")
    below.set_ylabel("ms a layer")
    below.set_xlabel("context, tokens")
    below.set_xscale("log", base=2)
    below.set_xticks(contexts, [str(context) for context in contexts])
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="0.17B", help=f"folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1024, 2048, 4096])
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--micro-batches", nargs="+", default=["1", "2", "3", AUTO])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--expert-dtype", default=AUTO)
    parser.add_argument("--attention-dtype", default=AUTO)
    parser.add_argument("--tokens", type=int, default=64, help="generated by each request")
    parser.add_argument("--warm-up-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results there as well")
    parser.add_argument("--plot", type=Path, help="draw them there (needs matplotlib)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    console = Console(highlight=False, width=max(110, Console().width))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = args.model
        if model in SHAPES:
            model = str(ensure_checkpoint(model, scratch))
        vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
        instances = open_instances(model, stack, args)
        found = {c: measure(instances, c, vocabulary, args) for c in args.contexts}
    title = (
        f"{hardware()}\n{args.model}, {args.dtype}, {args.concurrency} requests, "
        f"{args.tokens} tokens each, medians of {args.rounds} rounds"
    )
    console.print(title)
    print_table(console, found)
    if args.json:
        rows = [
            {"context": context, "instance": name, **asdict(pace)}
            for context, paces in found.items()
            for name, pace in paces.items()
        ]
        args.json.write_text(json.dumps({"hardware": hardware(), "results": rows}, indent=1))
    if args.plot:
        write_plot(args.plot, title, found)


if __name__ == "__main__":
    main()
