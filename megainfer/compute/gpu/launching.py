"""Giving a kernel to a device."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeGuard

from torch import Tensor

from megainfer.device import Device


def launch(
    device: Device,
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: object,
    writes: Sequence[Tensor],
    **constants: Any,
) -> None:
    """One launch of a Triton kernel in the current stream; none where the grid is empty.

    writes: those of the arguments that the kernel stores to; it may read all of them. constants:
    its constexpr parameters, and options such as num_warps.
    """
    launch_through(device, kernel, grid, *arguments, reads=(), writes=writes, **constants)


def launch_through(
    device: Device,
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: object,
    reads: Iterable[Tensor],
    writes: Sequence[Tensor],
    **constants: Any,
) -> None:
    """`launch` of a kernel that finds pointers in memory, or is given them in tuples.

    reads, writes: what it uses through them, beside its arguments; looked through only by a device
    that wants to know.
    """
    if 0 in grid:  # which CUDA refuses
        return
    device.launch(
        partial(kernel[grid], *arguments, **constants),
        reads=chain(filter(_is_tensor, arguments), reads),
        writes=writes,
        name=kernel.__name__,
    )


def _is_tensor(argument: object) -> TypeGuard[Tensor]:
    return isinstance(argument, Tensor)
