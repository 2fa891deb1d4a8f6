"""The CUDA driver's own calls, checked: what torch has no word for."""

from importlib import import_module
from typing import Any

from megainfer.errors import ConfigError


class DriverError(RuntimeError):
    """A call of the CUDA driver has failed, as torch says it of the runtime's."""

    def __init__(self, call: str, reason: str) -> None:
        super().__init__(f"{call} of the CUDA driver has failed: {reason}")
        self.reason = reason


class CudaDriver:
    """`cuda.bindings.driver`, which comes with torch's builds for CUDA. names: its constants."""

    def __init__(self, bindings: Any) -> None:
        self.names = bindings

    @classmethod
    def load(cls) -> "CudaDriver":
        """Raises ConfigError where the bindings or the driver itself are missing."""
        try:
            found = cls(import_module("cuda.bindings.driver"))
        except ImportError:
            raise ConfigError(
                "the road 'ipc' needs cuda-bindings, which torch's builds for CUDA bring along; "
                "install such a build"
            ) from None
        try:
            found.call("cuInit", 0)
        except RuntimeError as error:  # there may be no libcuda
            raise ConfigError(f"the road 'ipc' finds no CUDA driver: {error}") from None
        return found

    def call(self, name: str, *arguments: Any) -> Any:
        """What it returns beside the error: nothing, a value, or a tuple of them.

        Raises DriverError.
        """
        error, *values = getattr(self.names, name)(*arguments)
        if int(error) != 0:
            raise DriverError(name, getattr(error, "name", str(error)))
        return values[0] if len(values) == 1 else tuple(values)
