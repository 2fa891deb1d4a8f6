"""The ping-pong pipeline beside its formulas and its simulator, for m = 1, 2, 3, 4.

    python benchmarks/pingpong.py --plot timeline.png --trace trace.json
    python benchmarks/pingpong.py --t-a 4 --t-e 4 --attention 1 2 4
    python benchmarks/pingpong.py --model 0.17B --concurrency 64 --dtype bfloat16

Without --model the stage times are set: nodes, scheduler, ping-pong, gather and M2N are the real
ones in real processes, but the models sleep to a deadline. With it, decoding of a real model is
measured (two runs that differ by their output tokens, subtracted). Every m has its turn in every
round; the table shows medians. Columns:

    nodes     attention + expert nodes
    tok/s     rows through all layers a second
    x m=1     as many times the throughput of m = 1
    T_a, T_e  ms that a micro-batch's layer takes on an attention and on an expert node
    T_c       ms of one transfer, from the beginning of the send to a waiting receiver noticing
    idle a/e  share of the time in which the nodes of a role had nothing to do
    period    ms in which all m micro-batches advance by one layer, and beside it the predicted
              max(m T_f, T_a + T_e + 2 T_c) of the measured stage times
    T_total   ms of all micro-batches through all layers from a standing start, beside the paper's
              formula; - where its condition m >= 2 (1 + T_c / T_f) does not hold
    rows      of an expert batch, beside the simulator's; and so its tokens a second
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

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
from synthetic import Stages, SyntheticCluster, without_threads
from timeline import check_plot, write_plot, write_trace

from megainfer import LLM
from megainfer.instruments.trace_events import Run
from megainfer.planner.formulas import layer_period, min_micro_batches, total_time
from megainfer.simulator import Cost, Scenario, simulate

SPANS = 4000  # kept by each node for --trace and --plot
JITTER = 0.01  # of the simulated stage times; as of sleeps
SIMULATED_LAYERS = 800  # of a micro-batch; the first quarter doesn't count
NAN = float("nan")


@dataclass(frozen=True)
class Pace:
    """One m in one round, or the medians of several. Times in ms; NaN: not measured."""

    attention_nodes: int
    expert_nodes: int
    micro_batches: int
    tokens_per_second: float
    t_a: float
    t_e: float
    t_c: float
    idle_attention: float
    idle_expert: float
    period: float
    predicted_period: float
    rows_per_batch: float
    dispatches: float  # of all attention nodes
    batches: float  # of all expert nodes
    rows: float  # in these
    total: float = NAN
    predicted_total: float = NAN
    simulated_rows_per_batch: float = NAN
    simulated_tokens_per_second: float = NAN


Delta = Mapping[str, dict[str, float]]  # by node, of its counters


def pace_of(delta: Delta, seconds: float, m: int, tokens: float) -> Pace:
    """From the growth of all counters in `seconds`, in which `tokens` rows passed all layers."""
    attention, expert = of_role(delta, "attention"), of_role(delta, "expert")
    t_a = mean_of(attention, T_A_KINDS, "dispatch")
    t_e = mean_of(expert, T_E_KINDS, "expert")
    t_c = mean_transfer([*attention, *expert])
    dispatches = sum(own.get("dispatch_count", 0) for own in attention)
    batches = sum(own["batches"] for own in expert)
    rows = sum(own["rows"] for own in expert)
    # Where no receiver ever waited, transfers cost nobody time.
    known_t_c = 0.0 if math.isnan(t_c) else t_c
    return Pace(
        attention_nodes=len(attention),
        expert_nodes=len(expert),
        micro_batches=m,
        tokens_per_second=tokens / seconds,
        t_a=1e3 * t_a,
        t_e=1e3 * t_e,
        t_c=1e3 * t_c,
        idle_attention=idle_share(attention, seconds),
        idle_expert=idle_share(expert, seconds),
        period=1e3 * seconds * m * len(attention) / max(dispatches, 1),
        predicted_period=1e3 * layer_period(t_a, t_e, known_t_c, m),
        rows_per_batch=rows / max(batches, 1),
        dispatches=dispatches,
        batches=batches,
        rows=rows,
    )


# --- stage times set -----------------------------------------------------------------------------


def synthetic_round(stages: Stages, warm_up: float, duration: float) -> tuple[Pace, Run]:
    with SyntheticCluster(stages) as cluster:
        sleep(warm_up)
        before = cluster.counters()
        sleep(duration)
        after = cluster.counters()
        spans = cluster.take_spans() if stages.trace else {}
    delta = {name: difference(before[name], after[name]) for name in after}
    seconds = sum(own["clock_seconds"] for own in delta.values()) / len(delta)
    dispatches = sum(own["dispatch_count"] for own in of_role(delta, "attention"))
    pace = pace_of(delta, seconds, stages.micro_batches, stages.rows * dispatches / stages.layers)
    return with_simulation(stages, pace), spans


def with_simulation(stages: Stages, pace: Pace) -> Pace:
    """What the simulator makes of the measured stage times."""
    scenario = Scenario(
        attention_nodes=stages.num_attention,
        expert_nodes=stages.num_expert,
        micro_batches=stages.micro_batches,
        layers=stages.layers,
        rows=stages.rows,
        choosing=1.0,
        attention=Cost(pace.t_a / 1e3, 0.0),
        # What sending and Python add to an expert's set time does not depend on the rows.
        expert=replace(
            stages.expert,
            fixed=pace.t_e / 1e3 - stages.expert.per_row * pace.rows_per_batch,
        ),
        transfer=0.0 if math.isnan(pace.t_c) else pace.t_c / 1e3,
        jitter=JITTER,
        warm_up=SIMULATED_LAYERS / 4 * pace.period / 1e3,
        duration=SIMULATED_LAYERS * pace.period / 1e3,
    )
    outcome = simulate(scenario)
    return replace(
        pace,
        simulated_rows_per_batch=outcome.rows_per_batch,
        simulated_tokens_per_second=outcome.tokens_per_second,
    )


def with_total(stages: Stages, pace: Pace, duration: float) -> Pace:
    """The paper's T_total, where it holds, beside passes from a standing start."""
    t_a, t_e, t_c = (time / 1e3 for time in (pace.t_a, pace.t_e, pace.t_c))
    if math.isnan(t_c) or stages.num_attention > 1:
        return pace
    if stages.micro_batches < min_micro_batches(max(t_a, t_e), t_c):
        return pace
    with SyntheticCluster(replace(stages, standing=True, trace=0)) as cluster:
        sleep(duration)
        counters = cluster.counters()
    passes = [s for own in counters.values() for s in own.get("standing_seconds", ())]
    if not passes:
        raise SystemExit(f"--duration {duration:g}: no pass through all layers ended in time")
    predicted = total_time(t_a, t_e, t_c, stages.micro_batches, stages.layers)
    return replace(pace, total=1e3 * median(passes), predicted_total=1e3 * predicted)


def run_synthetic(args: argparse.Namespace, keep: Callable[[str, Run], None]) -> Iterator[Pace]:
    trace = SPANS if args.trace or args.plot else 0
    expert = Cost(args.t_e / 1e3, args.t_e_row / 1e6)
    for number in range(args.rounds):
        for nodes in args.attention:
            for m in args.m:
                stages = Stages(
                    num_attention=nodes,
                    num_expert=args.expert,
                    micro_batches=m,
                    layers=args.layers,
                    rows=args.rows,
                    attention=args.t_a / 1e3,
                    expert=expert,
                    spin=args.spin / 1e6,
                )
                traced = replace(stages, trace=trace if number == args.rounds - 1 else 0)
                pace, spans = synthetic_round(traced, args.warm_up, args.duration)
                keep(f"{nodes}A{args.expert}E m={m}", spans)
                yield with_total(stages, pace, args.duration)


# --- a real model --------------------------------------------------------------------------------


def real_round(llm: LLM, m: int, load: Load, vocabulary: int, seed: int) -> Pace:
    """Decoding alone: a run to the first tokens is taken off a run of all."""
    first, first_seconds = counted(llm, replace(load, output_tokens=1), vocabulary, seed)
    whole, seconds = counted(llm, load, vocabulary, seed + 1)
    delta = {name: difference(first[name], whole[name]) for name in whole}
    tokens = load.concurrency * (load.output_tokens - 1)
    return pace_of(delta, max(seconds - first_seconds, 1e-9), m, tokens)


def counted(llm: LLM, load: Load, vocabulary: int, seed: int) -> tuple[Delta, float]:
    """What all counters grew by, and how long it took."""
    before = llm.stats()
    seconds = generate(llm, load.prompts(vocabulary, seed), load.output_tokens)
    after = llm.stats()
    return {name: difference(before[name], after[name]) for name in after}, seconds


def run_real(args: argparse.Namespace, keep: Callable[[str, Run], None]) -> Iterator[Pace]:
    load = Load(args.concurrency, args.prompt_tokens, args.output_tokens)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = ensure_checkpoint(args.model, scratch) if args.model in SHAPES else args.model
        vocabulary = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
        instances = {m: stack.enter_context(open_llm(folder, m, args)) for m in args.m}
        for number in range(args.rounds + 1):
            for m, llm in instances.items():
                pace = real_round(llm, m, load, vocabulary, 2 * number)
                if number:  # the first is warm-up
                    yield pace
        for m, llm in instances.items():
            keep(f"{args.model} m={m}", llm.take_spans())


def open_llm(folder: str | Path, m: int, args: argparse.Namespace) -> LLM:
    return LLM(
        str(folder),
        attn_gpus=args.attention[0],
        ffn_gpus=args.expert,
        micro_batches=m,
        dtype=args.dtype,
        max_model_len=args.prompt_tokens + args.output_tokens,
        max_num_seqs=args.concurrency,
        prefix_cache=False,
        trace=SPANS if args.trace or args.plot else 0,
    )


# --- report --------------------------------------------------------------------------------------


def medians(paces: Sequence[Pace]) -> Pace:
    rows = [asdict(pace) for pace in paces]
    fields: dict[str, Any] = {name: _median([row[name] for row in rows]) for name in rows[0]}
    return Pace(**fields)


def _median(values: Sequence[float]) -> float:
    """A count that all have in common stays a whole number."""
    return values[0] if len(set(values)) == 1 else median(values)


def summary(paces: Sequence[Pace]) -> list[Pace]:
    """The rounds' medians, in the order in which each came first."""
    found: dict[tuple[int, int], list[Pace]] = {}
    for pace in paces:
        found.setdefault((pace.attention_nodes, pace.micro_batches), []).append(pace)
    return [medians(rounds) for rounds in found.values()]


def beside(found: float, predicted: float, digits: int) -> str:
    """`8.31 (8.20, +1.3%)`"""
    if math.isnan(found) or math.isnan(predicted):
        return "-"
    return f"{found:.{digits}f} ({predicted:.{digits}f}, {found / predicted - 1:+.1%})"


def print_table(console: Console, paces: Sequence[Pace]) -> None:
    alone = {p.attention_nodes: p.tokens_per_second for p in paces if p.micro_batches == 1}
    table = Table()
    for title in ("nodes", "m", "tok/s", "x m=1", "T_a", "T_e", "T_c", "idle a/e"):
        table.add_column(title, justify="right")
    for title in ("period", "T_total", "rows (simulated)", "tok/s (simulated)"):
        table.add_column(title, justify="right")
    for p in paces:
        one = alone.get(p.attention_nodes)
        table.add_row(
            f"{p.attention_nodes}+{p.expert_nodes}",
            str(p.micro_batches),
            f"{p.tokens_per_second:.1f}",
            f"{p.tokens_per_second / one:.2f}" if one else "-",
            *(f"{time:.3f}" for time in (p.t_a, p.t_e, p.t_c)),
            f"{p.idle_attention:.1%} / {p.idle_expert:.1%}",
            beside(p.period, p.predicted_period, 2),
            beside(p.total, p.predicted_total, 1),
            beside(p.rows_per_batch, p.simulated_rows_per_batch, 1),
            beside(p.tokens_per_second, p.simulated_tokens_per_second, 0),
        )
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--m", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--attention", type=int, nargs="+", default=[1], help="attention nodes")
    parser.add_argument("--expert", type=int, default=1, help="expert nodes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trace", type=Path, help="write a Chrome/Perfetto trace there")
    parser.add_argument("--plot", type=Path, help="draw the timeline there (matplotlib)")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    own = parser.add_argument_group("stage times set")
    own.add_argument("--t-a", type=float, default=4.0, help="ms of an attention half")
    own.add_argument("--t-e", type=float, default=4.0, help="ms of an expert batch")
    own.add_argument("--t-e-row", type=float, default=0.0, help="us that each of its rows adds")
    own.add_argument("--rows", type=int, default=8, help="of one attention node's micro-batch")
    own.add_argument("--layers", type=int, default=24)
    own.add_argument("--spin", type=float, default=0.0, help="us of waiting before a sleep")
    own.add_argument("--warm-up", type=float, default=0.5, help="seconds before measuring")
    own.add_argument("--duration", type=float, default=2.0, help="seconds of measuring")
    real = parser.add_argument_group("a real model")
    real.add_argument("--model", help=f"folder, or one of {', '.join(SHAPES)}")
    real.add_argument("--dtype", default="auto")
    real.add_argument("--concurrency", type=int, default=64)
    real.add_argument("--prompt-tokens", type=int, default=64)
    real.add_argument("--output-tokens", type=int, default=64)
    args = parser.parse_args()
    if args.model and len(args.attention) > 1:
        parser.error(f"--attention {args.attention}: with --model, give one number")
    if args.model and args.output_tokens < 2:
        parser.error(f"--output-tokens {args.output_tokens}: decoding begins at the second")
    return args


def title_of(args: argparse.Namespace) -> str:
    if args.model:
        work = (
            f"{args.model}, dtype {args.dtype}, {args.concurrency} requests of "
            f"{args.prompt_tokens} + {args.output_tokens} tokens"
        )
    else:
        work = (
            f"stage times set: T_a {args.t_a:g} ms, T_e {args.t_e:g} ms + {args.t_e_row:g} us a "
            f"row, {args.rows} rows, {args.layers} layers"
        )
    return f"{hardware()}\n{work}; medians of {args.rounds} rounds"


def main() -> None:
    args = parse()
    if args.plot:
        check_plot()
    started, runs = monotonic(), dict[str, Run]()
    run = run_real if args.model else run_synthetic
    paces = summary(list(run(args, runs.__setitem__)))
    console = Console(highlight=False, width=max(170, Console().width))
    console.print(f"{title_of(args)}; {monotonic() - started:.0f} s in all")
    print_table(console, paces)
    if args.trace:
        write_trace(args.trace, runs)
    if args.plot:
        write_plot(args.plot, runs)
    if args.json:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        rows = [{k: v for k, v in asdict(p).items() if v == v} for p in paces]  # NaN is no JSON
        report = {"hardware": hardware(), "options": options, "results": rows}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(without_threads(main))
