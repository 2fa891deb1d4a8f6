"""Giving a kernel to a device."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from megainfer.device import Device


def launch(
    device: Device,
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: object,
    writes: Sequence[Tensor],
    **constants: object,
) -> None:
    """One launch of a Triton kernel in the current stream; none where the grid is empty.

    arguments: tensors, numbers, and tuples of tensors, with which a kernel is compiled for each
    length. writes: those that the kernel stores to; it may read all of them. constants: its
    constexpr parameters, and options such as num_warps.
    """
    if 0 in grid:  # which CUDA refuses
        return
    flat = chain.from_iterable(a if isinstance(a, tuple) else (a,) for a in arguments)
    device.launch(
        partial(kernel[grid], *arguments, **constants),
        reads=[a for a in flat if isinstance(a, Tensor)],
        writes=writes,
        name=kernel.__name__,
    )
