"""The figures of a benchmark's JSON: each by its name, and whether more of it is better."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

Figures = dict[str, float | None]
"""By path, such as `results/concurrency=8,engine=colocated/seconds`; None is what wasn't told."""


class Better(StrEnum):
    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Selection:
    """Which numbers are figures. Patterns as in a shell: higher and lower match the last part of a
    path and go before what is known of names; only and without match the whole path."""

    higher: Sequence[str] = ()
    lower: Sequence[str] = ()
    only: Sequence[str] = ("*",)
    without: Sequence[str] = ()

    def better(self, path: str) -> Better | None:
        """None: no figure, or one that isn't wanted."""
        if not _matches(path, self.only) or _matches(path, self.without):
            return None
        return self._direction(path.rpartition("/")[2])

    def _direction(self, name: str) -> Better | None:
        for patterns, better in (
            (self.higher, Better.HIGHER),
            (self.lower, Better.LOWER),
            (_NEITHER, None),
            (_HIGHER, Better.HIGHER),
            (_LOWER, Better.LOWER),
        ):
            if _matches(name, patterns):
                return better
        return None


_NEITHER = ("floor_ms",)  # what the machine would take, not the program
_HIGHER = ("*_per_second", "per_gpu", "gigabytes", "gigaflops")
_LOWER = ("ms", "*_ms", "*_us", "seconds", "*_seconds", "ttft", "t_a", "t_e", "t_c")


def _matches(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def figures_of(document: Any, selection: Selection) -> Figures:
    """Of a JSON document. A figure that can't have a ratio (null, NaN, 0) is there, as None."""
    numbers = dict(_walk(document, ""))
    return {p: _positive(v) for p, v in numbers.items() if selection.better(p) is not None}


def _positive(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None


def _walk(value: Any, path: str) -> Iterator[tuple[str, float | None]]:
    """All numbers and nulls, in the order of the document."""
    match value:
        case dict():
            for key, part in value.items():
                yield from _walk(part, f"{path}/{key}" if path else key)
        case list():
            for name, part in zip(row_names(value), value, strict=True):
                yield from _walk(part, f"{path}/{name}")
        case bool() | str():
            pass
        case _:
            yield path, value


def row_names(rows: Sequence[Any]) -> list[str]:
    """What tells the rows of a list apart, such as `rows=8,weights=int8`: the first of their fields
    that do, as benchmarks write what was set before what came of it; the index where none do.

    >>> row_names([{"rows": 1, "of": "a", "ms": 0.5}, {"rows": 8, "of": "a", "ms": 0.7}])
    ['rows=1', 'rows=8']
    """
    chosen: list[str] = []
    for field in _label_fields(rows):
        if _kinds(rows, [*chosen, field]) > _kinds(rows, chosen):
            chosen.append(field)
        if chosen and _kinds(rows, chosen) == len(rows):
            return [",".join(f"{name}={row[name]}" for name in chosen) for row in rows]
    return [str(index) for index in range(len(rows))]


def _label_fields(rows: Sequence[Any]) -> Iterator[str]:
    """Texts and whole numbers that every row has."""
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return
    for field in rows[0]:
        if all(isinstance(row.get(field), str | int) for row in rows):
            yield field


def _kinds(rows: Sequence[Mapping[str, Hashable]], fields: Sequence[str]) -> int:
    return len({tuple(row[field] for field in fields) for row in rows})
