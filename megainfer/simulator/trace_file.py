"""Traces of requests: a file with when each came and how long it was.

Three layouts are told apart by their columns, and are those of public traces:

- CSV with TIMESTAMP (date and time), ContextTokens, GeneratedTokens: Azure's LLM inference traces.
- CSV with Timestamp (seconds), Request tokens, Response tokens: BurstGPT.
- JSON lines with timestamp (milliseconds), input_length, output_length: Mooncake, AIPerf.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError, cited
from megainfer.simulator.request import Request
from megainfer.small_file import read_small_text

MAX_TRACE_BYTES = 256 * 2**20
Row = Mapping[str, Any]


def read_trace(path: Path, most: int = 100_000) -> list[Request]:
    """Its first `most` requests in the order in which they came, the first at 0 seconds.

    Requests without any output are left out: they failed. Raises ConfigError.
    """
    try:
        text = read_small_text(path, MAX_TRACE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trace {path} can't be read: {error}") from error
    rows = _json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text)
    found: list[tuple[float, int, int]] = []
    for at, given, output in rows:
        if output > 0 and given > 0:
            found.append((at, given, output))
        if len(found) == most:
            break
    if not found:
        raise ConfigError(f"the trace {path} has no request with input and output")
    found.sort(key=lambda row: row[0])
    begin = found[0][0]
    return [Request(at - begin, given, output) for at, given, output in found]


def _json_rows(path: Path, text: str) -> Iterator[tuple[float, int, int]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _read(path, number, line, lambda line: _mooncake(json.loads(line)))


def _csv_rows(path: Path, text: str) -> Iterator[tuple[float, int, int]]:
    reader = csv.DictReader(text.splitlines())
    columns = set(reader.fieldnames or ())
    for needed, layout in _LAYOUTS.items():
        if set(needed) <= columns:
            for number, row in enumerate(reader, start=2):
                yield _read(path, number, row, layout)
            return
    known = "; ".join(", ".join(needed) for needed in _LAYOUTS)
    raise ConfigError(
        f"the trace {path} has the columns {cited(sorted(columns))}; known layouts have {known}, "
        "or are JSON lines with timestamp, input_length, output_length"
    )


def _read(
    path: Path, number: int, row: Any, layout: Callable[[Any], tuple[float, int, int]]
) -> tuple[float, int, int]:
    try:
        return layout(row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"the trace {path}, line {number}: {error!r:.200}") from error


def _azure(row: Row) -> tuple[float, int, int]:
    at = datetime.fromisoformat(_six_digits(row["TIMESTAMP"])).timestamp()
    return at, int(row["ContextTokens"]), int(row["GeneratedTokens"])


def _six_digits(time: str) -> str:
    """Python reads microseconds; these have a digit more.

    >>> _six_digits("2023-11-16 18:15:46.6805900"), _six_digits("2024-05-10 00:00:00+00:00")
    ('2023-11-16 18:15:46.680590', '2024-05-10 00:00:00+00:00')
    """
    whole, point, rest = time.strip().partition(".")
    if not point:
        return whole
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return f"{whole}.{digits[:6]:0<6}{rest[len(digits) :]}"


def _burst_gpt(row: Row) -> tuple[float, int, int]:
    return float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"])


def _mooncake(row: Row) -> tuple[float, int, int]:
    return float(row["timestamp"]) / 1e3, int(row["input_length"]), int(row["output_length"])


_LAYOUTS: Mapping[tuple[str, ...], Callable[[Row], tuple[float, int, int]]] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure,
    ("Timestamp", "Request tokens", "Response tokens"): _burst_gpt,
}
