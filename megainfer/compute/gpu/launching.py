"""Giving a kernel to a device."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from megainfer.device import Device


def launch(
    device: Device,
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: object,
    writes: Sequence[Tensor],
    reads: Sequence[Tensor] = (),
    **constants: object,
) -> None:
    """One launch of a Triton kernel in the current stream; none where the grid is empty.

    writes: those of the arguments that the kernel stores to, and what else it stores to through
    pointers that it loads; it may read all arguments, and `reads` through such pointers. constants:
    its constexpr parameters, and options such as num_warps.
    """
    if 0 in grid:  # which CUDA refuses
        return
    device.launch(
        partial(kernel[grid], *arguments, **constants),
        reads=[*(a for a in arguments if isinstance(a, Tensor)), *reads],
        writes=writes,
        name=kernel.__name__,
    )
