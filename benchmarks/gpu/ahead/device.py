"""A device whose tensors have shapes and no memory, and which keeps what it is to launch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, dtype

from megainfer.device import Chip, HostDevice
from megainfer.device.host import HostReadback


class ShapesDevice(HostDevice):
    """`Device` on which whole models take no memory.

    launched: kernels in the order in which they were given, as Triton compiled them.
    """

    name = "shapes"
    torch = torch.device("meta")
    is_host = False
    processors = 132  # of an H100

    def __init__(self, architecture: int) -> None:
        """architecture: for which kernels are compiled, 90 for sm_90."""
        super().__init__()
        self.chip = Chip("", architecture)
        self.launched = list[Any]()

    def empty(self, shape: Sequence[int], dtype: dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=self.torch)

    def upload(self, host: Tensor) -> Tensor:
        return self.empty(host.shape, host.dtype)

    def fill(self, to: Tensor, host: Tensor) -> None:
        """What has no memory has no values."""

    def read_back(self, tensor: Tensor) -> HostReadback:
        return HostReadback(torch.zeros(tensor.shape, dtype=tensor.dtype))

    def launch(
        self,
        work: Callable[[], object],
        reads: Iterable[Tensor],
        writes: Iterable[Tensor],
        *,
        name: str,
    ) -> None:
        self.launched.append(work())
