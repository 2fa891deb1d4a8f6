"""The planner's predictions beside what others measured and published.

    python benchmarks/planner_checks.py ratios

ratios      Qwen3-235B-A22B on GB200, attention GPUs for each of the experts' swept by others
            (tests/support/ratio_sweep.py): tokens a second and GPU as measured, as predicted from
            the table of devices, and with one constant that is fitted to the first sweep: what the
            experts' pass takes is multiplied with it. Then the colocated baseline.
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
    errors,
    fitted_factor,
    of_shape,
)

console = Console(width=110)


def ratios() -> None:
    """The sweeps, and the baseline."""
    with tempfile.TemporaryDirectory() as folder:
        predictor = Predictor.of(Path(folder))
    factor = fitted_factor(predictor)
    for sweep in SWEEPS:
        console.print(_sweep(predictor, sweep, factor))
    console.print(_baseline(predictor))


def _sweep(predictor: Predictor, sweep: Sweep, factor: float) -> Table:
    plain, fitted = predictor.curve(sweep), predictor.curve(sweep, factor)
    off, shape = errors(fitted, sweep), of_shape(fitted, sweep)
    table = Table(
        title=f"{sweep.context // 1024}K, {sweep.batch} sequences an attention GPU; best at "
        f"{best(sweep.measured)}:1 as measured, {best(plain)}:1 as predicted, "
        f"{best(fitted)}:1 with {factor:.2f}",
        caption=f"largest error with the constant {_largest(off)}, of the shape {_largest(shape)}",
    )
    for column in ("ratio", "measured", "predicted", "", f"with {factor:.2f}", "", "shape"):
        table.add_column(column, justify="right")
    for ratio, measured in sweep.measured.items():
        table.add_row(
            f"{ratio}:1",
            f"{measured:.0f}",
            f"{plain[ratio]:.0f}",
            f"{plain[ratio] / measured - 1:+.1%}",
            f"{fitted[ratio]:.0f}",
            f"{off[ratio]:+.1%}",
            f"{shape[ratio]:+.1%}",
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
