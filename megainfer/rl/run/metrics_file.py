"""A run's numbers, one JSON object a step, and for TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError

METRICS, TEXTS, TENSORBOARD = "metrics.jsonl", "texts.jsonl", "tensorboard"


class MetricsFile:
    """Appends to `metrics.jsonl` and `texts.jsonl` in `folder`.

    step: the run goes on after it; what the files have of later steps is dropped, as it will come
    again. Raises ConfigError where TensorBoard is asked for and isn't installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics, self._texts = folder / METRICS, folder / TEXTS
        for path in (self._metrics, self._texts):
            _cut(path, step)
        self._board = _board(folder / TENSORBOARD, step) if tensorboard else None

    def write(self, step: int, metrics: Mapping[str, float], texts: list[dict[str, Any]]) -> None:
        """A step's numbers and sample texts. What isn't finite is null in the file: JSON has no
        word for it."""
        row = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        _append(self._metrics, [{"step": step, **row}])
        _append(self._texts, [{"step": step, **text} for text in texts])
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        """Nothing is written afterwards."""
        if self._board is not None:
            self._board.close()


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


def _cut(path: Path, step: int) -> None:
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        path.write_text("".join(kept))


def _step_of(line: str) -> float:
    """Of a line that a kill left half written: later than all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "run.tensorboard: TensorBoard isn't installed; pip install 'megainfer[rl]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
