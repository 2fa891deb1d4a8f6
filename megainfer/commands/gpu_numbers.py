"""Numbers of GPUs as an option's value."""

from collections.abc import Sequence

from megainfer.config import parse_gpus


class GpuNumbers(tuple[int, ...]):
    """One word such as 0,1: an option whose type is a tuple would take several."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: str | Sequence[int]) -> "GpuNumbers":
        """Raises ConfigError."""
        return cls(parse_gpus(value))
