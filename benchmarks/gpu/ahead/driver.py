"""A driver for Triton that compiles for any architecture, and launches nothing.

So what is compiled is what a GPU would be given: Triton itself specialises kernels by the arguments
with which they are launched.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""What a block may use, by architecture; for a kernel that needs more, Triton raises an error."""
WARP_THREADS, BLOCK_THREADS = 32, 1024


class CompilingDriver(DriverBase):  # type: ignore[misc]  # Triton has no types
    """architecture: 80 for sm_80."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_BYTES[architecture]},
            load_binary=lambda name, binary, shared, device: (name, name, 0, 0, BLOCK_THREADS),
        )

    @classmethod
    def is_active(cls) -> bool:
        """It isn't found: it is set."""
        return False

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, WARP_THREADS)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: None

    # What only a launch, a device or a timing would ask for; Triton's class wants them to be there.

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise AssertionError("nothing is launched")

    def get_active_torch_device(self) -> Any:
        raise AssertionError("there is no device")

    def get_benchmarker(self) -> Any:
        raise AssertionError("nothing is timed")
