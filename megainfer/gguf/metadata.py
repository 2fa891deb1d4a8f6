"""Look-ups in a GGUF file's metadata, whose errors name the file, the key and the value."""

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.gguf.header import Value


@dataclass(frozen=True, slots=True)
class Metadata:
    """path: of the file. looked_up: the keys that somebody asked for."""

    path: Path
    values: Mapping[str, Value]
    looked_up: set[str] = field(default_factory=set)

    def fail(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is {self.values.get(key)!r:.200}, {problem}")

    def _get(self, key: str) -> Value | None:
        self.looked_up.add(key)
        return self.values.get(key)

    def need(self, key: str) -> Value:
        """Raises ModelError where the file lacks it."""
        value = self._get(key)
        if value is None:
            raise ModelError(f"{self.path} has no {key}")
        return value

    def whole(self, key: str) -> int | None:
        value = self._get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.fail(key, "but must be a whole number")
        return value

    def alike(self, key: str) -> int | None:
        """A whole number that is given once, or for each layer and then the same for all."""
        value = self._get(key)
        if isinstance(value, array):
            if len(set(value)) != 1:
                raise self.fail(key, "but all layers must agree")
            return int(value[0])
        return self.whole(key)

    def number(self, key: str) -> float | None:
        """The shortest of those that a file's float32 stands for: 1e-06, not 9.99999997e-07."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(key, "but must be a number")
        return shortest(float(value))

    def flag(self, key: str) -> bool | None:
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, "but must be true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self._get(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(key, "but must be a string")
        return value

    def texts(self, key: str) -> list[str]:
        """Empty where there are none."""
        value = self._get(key)
        if value is not None and not isinstance(value, list):
            raise self.fail(key, "but must be a list of strings")
        return value or []

    def numbers(self, key: str) -> Sequence[int | float]:
        """Empty where there are none."""
        value = self._get(key)
        if value is not None and not isinstance(value, array):
            raise self.fail(key, "but must be a list of numbers")
        return () if value is None else value


def shortest(value: float) -> float:
    """The decimal number with the fewest digits that rounds to this float32.

    >>> shortest(0.0009765625), shortest(9.999999974752427e-07)
    (0.0009765625, 1e-06)
    """
    if value != value or value in (float("inf"), float("-inf")):
        return value
    for digits in range(1, 17):
        short = float(f"{value:.{digits}g}")
        try:
            if struct.pack("<f", short) == struct.pack("<f", value):
                return short
        except OverflowError:
            continue
    return value
