"""Problems out of JSON lines or parquet."""

import json
from collections.abc import Iterator
from pathlib import Path

from megainfer.errors import ConfigError
from megainfer.rl.data.problem import Keys, Problem, read_problem
from megainfer.small_file import read_small

MAX_FILE_BYTES = 4 * 2**30
"""All problems are held in memory."""


def read_problems(path: Path, keys: Keys | None = None) -> list[Problem]:
    """All problems of a file, in its order: JSON lines, or parquet where its name ends so.

    Raises ConfigError, which names the file and the line or row (counted from 1) at fault.
    """
    keys = keys or Keys()
    rows = _parquet(path, keys) if path.suffix == ".parquet" else _json_lines(path, keys)
    problems = list(rows)
    if not problems:
        raise ConfigError(f"{path} has no problems")
    return problems


def _json_lines(path: Path, keys: Keys) -> Iterator[Problem]:
    try:
        content = read_small(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{place} isn't JSON: {error}") from error
        yield read_problem(entry, keys, place)


def _parquet(path: Path, keys: Keys) -> Iterator[Problem]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError(
            f"{path}: parquet needs pyarrow: pip install 'megainfer[rl]', or give JSON lines"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            missing = {keys.prompt, keys.answer} - set(file.schema_arrow.names)
            if missing:
                raise ConfigError(
                    f"{path} has no column {sorted(missing)[0]!r}, only "
                    f"{', '.join(file.schema_arrow.names)}; --data.prompt-key and "
                    "--data.answer-key name others"
                )
            number = 0
            for batch in file.iter_batches(columns=[keys.prompt, keys.answer]):
                for entry in batch.to_pylist():
                    number += 1
                    yield read_problem(entry, keys, f"{path}, row {number}")
    except (OSError, ArrowException) as error:
        raise ConfigError(f"{path} can't be read as parquet: {error}") from error
