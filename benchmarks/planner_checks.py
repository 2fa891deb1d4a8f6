"""The planner's predictions beside what others measured and published.

    python benchmarks/planner_checks.py
    python benchmarks/planner_checks.py ratios

ratios      Qwen3-235B-A22B on GB200, attention GPUs for each of the experts' swept by others
            (tests/support/ratio_sweep.py): tokens a second and GPU as measured, as predicted from
            the table of devices, and that times one constant, how many times faster than predicted
            the first sweep is in the mean. Then the colocated baseline.
estimates   of NVIDIA's aiconfigurator (tests/support/aiconfigurator_figures.py): milliseconds
            between tokens on colocated H100 and H200, and what they are made of, beside ours.
paper       MegaScale-Infer's evaluation (tests/support/paper_rows.py) from its table of GPUs: the
            best plans, more micro-batches, more attention replicas; once at all published rates,
            once with measured kernels.
seconds     of planning Kimi K2, a model of 1T weights, on 1,024 GPUs of 4 kinds: of one core.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from megainfer.compute.selection import Precision
from megainfer.planner.costs import ModelCosts, Popularity
from megainfer.planner.hardware import load_devices
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.model_stages import ModelStages
from megainfer.planner.search.planning import Planner
from megainfer.planner.search.workload import Objective, Prefill, Target, Workload
from tests.support.aiconfigurator_figures import FIGURES, Estimator
from tests.support.paper_rows import (
    KINDS,
    MODELS,
    MORE_MICRO_BATCHES,
    SECOND_MICRO_BATCH,
    paper_rows,
)
from tests.support.public_models import public_spec
from tests.support.ratio_sweep import (
    COLOCATED,
    SWEEPS,
    Predictor,
    Sweep,
    best,
    constant_of,
    errors,
)

console = Console(width=160)


def ratios() -> None:
    """The sweeps, and the baseline."""
    with tempfile.TemporaryDirectory() as folder:
        predictor = Predictor.of(Path(folder))
    constant = constant_of(predictor.curve(SWEEPS[0]), SWEEPS[0])
    for sweep in SWEEPS:
        console.print(_sweep(predictor, sweep, constant))
    console.print(_baseline(predictor))


def _sweep(predictor: Predictor, sweep: Sweep, constant: float) -> Table:
    curve = predictor.curve(sweep)
    plain, times = errors(curve, sweep), errors(curve, sweep, constant)
    shape = errors(curve, sweep, constant_of(curve, sweep))
    table = Table(
        title=f"{sweep.context // 1024}K, {sweep.batch} sequences an attention GPU; best at "
        f"{best(sweep.measured)}:1 as measured, {best(curve)}:1 as predicted",
        caption=f"largest error {_largest(plain)}, with the constant {_largest(times)}, of the "
        f"shape alone {_largest(shape)}",
    )
    for column in ("ratio", "measured", "predicted", "", f"x {constant:.2f}", ""):
        table.add_column(column, justify="right")
    for ratio, measured in sweep.measured.items():
        table.add_row(
            f"{ratio}:1",
            f"{measured:.0f}",
            f"{curve[ratio]:.0f}",
            f"{plain[ratio]:+.1%}",
            f"{constant * curve[ratio]:.0f}",
            f"{times[ratio]:+.1%}",
        )
    return table


def _baseline(predictor: Predictor) -> Table:
    table = Table(title="colocated, 16K: vLLM with wide expert parallelism")
    for column in ("GPUs", "sequences a GPU", "measured", "predicted", ""):
        table.add_column(column, justify="right")
    for gpus, (batch, measured) in COLOCATED.items():
        predicted = predictor.colocated(gpus, batch)
        off = f"{predicted / measured - 1:+.1%}"
        table.add_row(f"{gpus}", f"{batch}", f"{measured:.0f}", f"{predicted:.0f}", off)
    return table


def _largest(off: Mapping[int, float]) -> str:
    return f"{max(abs(error) for error in off.values()):.1%}"


def estimates() -> None:
    """Colocated decoding, beside aiconfigurator."""
    table = Table(title="ms between tokens at 4K of context: aiconfigurator, ours")
    for column in ("model", "GPUs", "layout", "batch", "its", "ours", ""):
        table.add_column(column, justify="left" if column in ("model", "layout") else "right")
    for column in ("attention", "experts", "exchange"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        estimator = Estimator(Path(folder))
        for its in FIGURES:
            ours = estimator.estimate(its)
            table.add_row(
                its.model,
                f"{its.tp * its.dp} {its.device}",
                its.layout,
                f"{its.batch}",
                f"{its.milliseconds:.1f}",
                f"{ours.milliseconds:.1f}",
                f"{ours.milliseconds / its.milliseconds - 1:+.1%}",
                f"{its.attention:.1f}, {ours.attention:.1f}",
                f"{its.experts:.1f}, {ours.experts:.1f}",
                f"{its.exchange:.1f}, {ours.exchange:.1f}",
            )
    console.print(table)


def paper() -> None:
    """The rows, beside what is published."""
    console.print(_paper_plans(), _paper_micro_batches(), _paper_replicas())


def _paper_plans() -> Table:
    table = Table(title="best plans: apart, colocated (wide), tensor parallel alone")
    for column in ("model", "rates", "GPUs, and counted by", "apart", "it is"):
        table.add_column(column, no_wrap=True)
    for column in ("apart", "wide", "TP", "over wide", "over TP"):
        table.add_column(column, justify="right")
    cases = (
        ("A800", ("A800",), Objective.GPU),
        ("H20", ("H20", "L40S"), Objective.COST),
        ("H20", KINDS, Objective.COST),
    )
    for (baseline, kinds, objective), name, ideal in product(cases, MODELS, (True, False)):
        rows = paper_rows(name, ideal)
        answer = rows.answer(kinds, objective)
        apart, wide, parallel = (
            plan.value(objective)
            for plan in (answer.apart[0], answer.together[0], rows.tensor_parallel(baseline))
        )
        table.add_row(
            name,
            "published" if ideal else "measured",
            f"{'all' if kinds is KINDS else ' + '.join(kinds)}, {objective}",
            _short(answer.apart[0].deployment),
            answer.apart[0].bound,
            f"{apart:.0f}",
            f"{wide:.0f}",
            f"{parallel:.0f}",
            f"{apart / wide:.2f}x",
            f"{apart / parallel:.2f}x",
        )
    return table


def _short(plan: Deployment) -> str:
    """Such as "4 x 2 H20 + 8 x 1 L40S, m 3, b 402"."""
    roles = (f"{role.count} x {role.tp} {role.device.name}" for role in plan.roles)
    spares = f", {plan.experts.spares} spare" if plan.experts.spares else ""
    return f"{' + '.join(roles)}{spares}, m {plan.micro_batches}, b {plan.rows}"


def _paper_micro_batches() -> Table:
    table = Table(title="tokens a second with more micro-batches, Ampere, measured kernels")
    for column in ("model", "1 to 2", "published", "2 to 3", "published"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in MODELS:
        tokens = paper_rows(name).by_micro_batches()
        table.add_row(
            name,
            f"{tokens[2] / tokens[1]:.2f}x",
            f"about {SECOND_MICRO_BATCH}x",
            f"{tokens[3] / tokens[2]:.2f}x",
            f"{MORE_MICRO_BATCHES[name]:.2f}x",
        )
    return table


def _paper_replicas() -> Table:
    shown = (1, 2, 4, 6, 8, 10, 12, 16)
    table = Table(title="DBRX on Ampere: tokens a second and GPU by attention replicas")
    table.add_column("rates")
    for count in shown:
        table.add_column(f"{count}", justify="right")
    for ideal in (True, False):
        per_gpu = paper_rows("dbrx", ideal).by_replicas(shown[-1])
        row = (f"{per_gpu[count]:.0f}" for count in shown)
        table.add_row("published" if ideal else "measured", *row)
    return table


def seconds() -> None:
    """For several questions, each from nothing."""
    devices = load_devices()
    inventory = Inventory(tuple((devices[kind], 256) for kind in ("H20", "L40S", "H100", "H200")))
    with tempfile.TemporaryDirectory() as folder:
        spec = public_spec("kimi-k2", Path(folder))
    table = Table(title=f"Kimi K2 in fp8 on {inventory.describe()}")
    for column in ("requests", "skew", "target", "counted by", "s", "apart", "colocated"):
        table.add_column(column)
    elsewhere = Workload(571, 159, Prefill.ELSEWHERE)
    for workload, skew, target, objective in (
        (elsewhere, 0.0, Target(0.1), Objective.GPU),
        (elsewhere, 0.0, Target(0.1), Objective.COST),
        (Workload(2000, 500), 0.0, Target(0.05, 2.0), Objective.COST),
        (elsewhere, 0.8, Target(0.1), Objective.COST),
    ):
        begin = time.process_time()
        popularity = Popularity.zipf(spec.num_experts, spec.top_k, skew)
        precision = Precision("bfloat16", "fp8", "fp8")
        stages = ModelStages(ModelCosts.of(spec, precision, popularity))
        answer = Planner.of(stages, inventory, workload).plan(target, objective)
        took = time.process_time() - begin
        best = (plans[0].deployment for plans in (answer.apart, answer.together))
        first = "" if target.ttft_seconds is None else f", first {target.ttft_seconds:g} s"
        table.add_row(
            f"{workload.input_tokens} + {workload.output_tokens}, prompts {workload.prefill}",
            f"{skew:g}",
            f"{target.tpot_seconds * 1e3:g} ms{first}",
            str(objective),
            f"{took:.1f}",
            *map(_short, best),
        )
    console.print(table)


CHECKS: Mapping[str, Callable[[], None]] = {
    "ratios": ratios,
    "estimates": estimates,
    "paper": paper,
    "seconds": seconds,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=[*CHECKS, "all"], nargs="?", default="all")
    asked = parser.parse_args().check
    for name in CHECKS if asked == "all" else [asked]:
        CHECKS[name]()


if __name__ == "__main__":
    main()
