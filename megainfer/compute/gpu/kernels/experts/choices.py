"""What a row's choices gave, weighted and summed."""

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.kernels.experts.messages import (
    FIELDS,
    FIRST,
    OUT,
    WEIGHTS,
    Messages,
    message_of,
)
from megainfer.compute.gpu.kernels.experts.types import TYPES
from megainfer.compute.gpu.launching import launch_through
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device

_ROWS, _CHANNELS = 8, 256


@triton.jit
def _sum_choices(
    table_ptr, places_ptr, results_ptr, messages, rows, size,
    OUT_ROW: tl.constexpr, ALIGNED: tl.constexpr, ON_INPUT: tl.constexpr,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_row = row < rows
    exists = is_row[:, None] & (channels < size)[None, :]
    line_ptr = table_ptr + message_of(table_ptr, messages, tl.where(is_row, row, 0)) * FIELDS
    own = row - tl.load(line_ptr + FIRST)
    weights = tl.load(line_ptr + WEIGHTS).to(tl.pointer_type(tl.float32)) + own * TOP_K
    sums = tl.zeros((ROWS, CHANNELS), tl.float32)
    for choice in tl.static_range(TOP_K):  # all are on their way at once
        place = tl.load(places_ptr + row * TOP_K + choice, mask=is_row, other=-1)
        is_here = place >= 0
        result = results_ptr + place.to(tl.int64)[:, None] * size + channels[None, :]
        numbers = tl.load(result, mask=exists & is_here[:, None], other=0.0).to(tl.float32)
        if not ON_INPUT:
            numbers *= tl.load(weights + choice, mask=is_here, other=0.0)[:, None]
        sums += numbers
    out = tl.load(line_ptr + OUT).to(tl.pointer_type(OUT_ROW)) + own * size
    if ALIGNED:
        out = tl.multiple_of(out, 16)
    tl.store(out[:, None] + channels[None, :], sums.to(OUT_ROW), mask=exists)


def sum_choices(
    device: Device, messages: Messages, places: Tensor, results: Tensor, *, on_input: bool
) -> None:
    """Overwrite all messages' outs with the sums of their rows' choices, in the order in which a
    row has them; zeros for a row of none and for one that doesn't count.

    places: int32 [C], -1 for a choice of nobody. results: [C, D] by place. on_input: weights have
    been multiplied with what experts saw.
    """
    size = results.shape[1]
    channels = min(_CHANNELS, power_of_two(size))
    launch_through(
        device, _sum_choices, (parts_of(messages.rows, _ROWS), parts_of(size, channels)),
        messages.table, places, results, messages.lines, messages.rows, size,
        OUT_ROW=TYPES[messages.dtype], ALIGNED=messages.aligned, ON_INPUT=on_input,
        TOP_K=messages.top_k, ROWS=_ROWS, CHANNELS=channels,
        writes=messages.writes, reads=messages.reads,
    )  # fmt: skip
