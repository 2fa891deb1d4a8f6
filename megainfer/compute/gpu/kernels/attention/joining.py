"""Joining what programs of their own have found of segments."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megainfer.compute.gpu.kernels.attention.paged_attention import join_segments
from megainfer.compute.gpu.kernels.attention.segments import Segments
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device

_NUMBERS = 512
"""Of a program's heads, so that many programs wait for memory at a time, each in vectors."""
_AT_ONCE = 8
"""Segments that are on their way together: one after the other would cost a latency each."""


def join(
    device: Device,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    rows: slice,
    gates_stride: int,
    segments: Segments,
    constants: Mapping[str, Any],
) -> None:
    """Fill `rows` of out; tensors: sums [rows, programs, H, D], states [rows, programs, H, 2],
    positions, sinks, gates and out, as `join_segments` takes them; constants: those that it shares
    with `attend`."""
    heads = constants["H"]
    at_once = min(power_of_two(heads), max(1, _NUMBERS // constants["CHANNELS"]))
    launch(
        device, join_segments, (rows.stop - rows.start, parts_of(heads, at_once)),
        *tensors, rows.start, gates_stride, segments.length, segments.programs,
        **constants, HEADS=at_once, AT_ONCE=_AT_ONCE,
        writes=(tensors[-1],),
    )  # fmt: skip
