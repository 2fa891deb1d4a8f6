"""What kernels need of each GPU, as rows and as a table in Markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby, repeat
from multiprocessing import get_context
from typing import Any

from triton.runtime import driver

from gpu.ahead.driver import SHARED_BYTES, CompilingDriver
from gpu.ahead.inspection import Resources, resources_of
from gpu.ahead.launches import launches

ARCHITECTURES = tuple(SHARED_BYTES)
HEADINGS = ("kernel", "variant", "first in", "warps", "registers", "shared KiB", "product", "loads")


@dataclass(frozen=True, slots=True)
class Row:
    """A variant of a kernel on one architecture. variant: its constants, as they are written in
    Python. first: the model and the step that launch it. number: of those that have all of this in
    common, and differ in what Triton knows of other arguments."""

    kernel: str
    variant: str
    first: str
    number: int
    architecture: int
    resources: Resources


def compiled_rows(models: Sequence[str]) -> list[Row]:
    """Of every variant and architecture; as many processes as there are architectures."""
    with ProcessPoolExecutor(len(ARCHITECTURES), get_context("spawn")) as pool:
        found = pool.map(_rows_for, ARCHITECTURES, repeat(models))
        return [row for rows in found for row in rows]


def _rows_for(architecture: int, models: Sequence[str]) -> list[Row]:
    driver.set_active(CompilingDriver(architecture))
    rows, numbers = list[Row](), Counter[tuple[str, ...]]()
    for launch in launches(models, architecture):
        kernel, variant = launch.compiled.name.strip("_"), _variant(launch.compiled.src)
        shown = kernel, variant, f"{launch.model}, {launch.step}"
        numbers[shown] += 1
        rows.append(Row(*shown, numbers[shown], architecture, resources_of(launch.compiled)))
    return rows


def _variant(source: Any) -> str:
    """Constants by name; what is False or None is left out, and what is True is a name alone."""
    names = source.fn.arg_names
    # What stands in a tuple is no constant of the kernel's own.
    constants = {names[at[0]]: value for at, value in source.constants.items() if len(at) == 1}
    said = [
        name if value is True else f"{name}={value}"
        for name, value in constants.items()
        if value is not None and value is not False and name.isupper()
    ]
    return ", ".join(said)


def markdown(rows: Sequence[Row]) -> str:
    """One line a variant; numbers of the architectures stand behind each other."""
    lines = [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
    ordered = sorted(rows, key=_identity)
    lines += [_line(_cells([*same])) for _, same in groupby(ordered, key=_identity)]
    return "\n".join(lines)


def _identity(row: Row) -> tuple[str, str, str, int]:
    return row.kernel, row.variant, row.first, row.number


def _cells(same: Sequence[Row]) -> list[str]:
    found = [row.resources for row in sorted(same, key=lambda row: row.architecture)]
    return [
        f"`{same[0].kernel}`",
        same[0].variant,
        same[0].first,
        _each(r.warps for r in found),
        _each(r.registers for r in found),
        _each(-(-r.shared // 1024) for r in found),
        _each(r.product or "–" for r in found),
        _each("ahead" if r.pipelined else "at once" for r in found),
    ]


def _each(values: Iterable[object]) -> str:
    """A value that all share, or one for each."""
    told = [str(value) for value in values]
    return told[0] if len(set(told)) == 1 else " / ".join(told)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
