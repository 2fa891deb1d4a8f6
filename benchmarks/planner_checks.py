"""The planner's predictions beside what others measured and published.

    python benchmarks/planner_checks.py ratios

ratios      Qwen3-235B-A22B on GB200, attention GPUs for each of the experts' swept by others
            (tests/support/ratio_sweep.py): tokens a second and GPU as measured, as predicted from
            the table of devices, and that times one constant, how many times faster than predicted
            the first sweep is in the mean. Then the colocated baseline.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.ratio_sweep import (
    COLOCATED,
    SWEEPS,
    Predictor,
    Sweep,
    best,
    constant_of,
    errors,
)

console = Console(width=110)


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


CHECKS: Mapping[str, Callable[[], None]] = {"ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=CHECKS, nargs="*", default=list(CHECKS))
    for name in dict.fromkeys(parser.parse_args().check):
        CHECKS[name]()


if __name__ == "__main__":
    main()
