"""Reading config.json: typed look-ups whose errors name the file, the key and the value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megainfer.errors import ModelError
from megainfer.small_file import MAX_JSON_BYTES, read_small_text

DTYPES = ("float32", "bfloat16", "float16")
MAX_SIZE = 2**31 - 1
"""Far beyond any model's; what exceeds it is a mistake, and would be one of memory later."""
MAX_NUMBER = 1e38
"""What float32 can hold."""
MAX_LAYERS = 2048
MAX_EXPERTS = 16384
"""The same of what plans hold one thing each of."""
MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layers"), MAX_LAYERS),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), MAX_EXPERTS
    ),
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in this file; ModelError when it is unreadable or something else."""
    try:
        value = json.loads(read_small_text(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, but holds {type(value).__name__}")
    return value


@dataclass(frozen=True, slots=True)
class Config:
    """config.json of one model folder. A key whose value is null counts as absent."""

    path: Path
    values: Mapping[str, Any]

    def fail(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is {self.values.get(key)!r:.200}, {problem}")

    def expect(self, key: str, only: str) -> None:
        """Raise ModelError where this key is there and isn't the only value that is supported."""
        if self.values.get(key) not in (None, only):
            raise self.fail(key, f"which is not supported; supported: {only}")

    def positive(self, *keys: str, default: int | None = None) -> int:
        """A whole number from 1 to MAX_SIZE, or what MOST says, under the first of these keys that
        is there."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise self.fail(key, "but must be a positive integer")
            if value > (most := MOST.get(key, MAX_SIZE)):
                what = "model has more than" if key in MOST else "size exceeds"
                raise self.fail(key, f"but no {what} {most}")
            return value
        if default is None:
            raise ModelError(f"{self.path}: {' or '.join(keys)} is missing")
        return default

    def whole(self, key: str, default: int) -> int:
        """A whole number from 0 to MAX_SIZE."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.fail(key, "but must be a whole number of at least 0")
        if value > MAX_SIZE:
            raise self.fail(key, f"but no size exceeds {MAX_SIZE}")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        return self.optional_number(key) or default

    def optional_number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(key, "but must be a positive number")
        if not 0 < value < MAX_NUMBER:  # as NaN isn't
            raise self.fail(key, f"but must be a positive number below {MAX_NUMBER:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "but must be true or false")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers, or a single one; empty when absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        if any(not isinstance(item, int) or isinstance(item, bool) for item in values):
            raise self.fail(key, "but must be an integer or a list of integers")
        return tuple(values)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(key, "but must be an object")
        return value

    def dtype(self) -> str:
        """What the weights are stored in; transformers before 5 called the key torch_dtype."""
        key = "dtype" if self.values.get("dtype") is not None else "torch_dtype"
        value = self.values.get(key, "float32")
        if value not in DTYPES:
            raise self.fail(key, f"which is not supported; supported: {', '.join(DTYPES)}")
        return str(value)
