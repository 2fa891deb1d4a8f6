"""What a row's choices gave, weighted and summed."""

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.kernels.messages import (
    OUT,
    WEIGHTS,
    Messages,
    field_of,
    first_row,
    message_of,
)
from megainfer.compute.gpu.kernels.types import TYPES
from megainfer.compute.gpu.launching import launch
from megainfer.device import Device

_TILE = 1024


@triton.jit
def _sum_choices(
    table_ptr, places_ptr, results_ptr, messages, top_k, size,
    OUT_ROW: tl.constexpr, ON_INPUT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    channels = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = channels < size
    message = message_of(table_ptr, messages, row)
    own = row - first_row(table_ptr, message)
    weights = field_of(table_ptr, message, WEIGHTS).to(tl.pointer_type(tl.float32)) + own * top_k
    sums = tl.zeros((TILE,), tl.float32)
    for choice in range(0, top_k):
        place = tl.load(places_ptr + row * top_k + choice)
        is_here = place >= 0
        result = results_ptr + place.to(tl.int64) * size + channels
        number = tl.load(result, mask=exists & is_here, other=0.0).to(tl.float32)
        if not ON_INPUT:
            number *= tl.load(weights + choice, mask=is_here, other=0.0)
        sums += number
    out = field_of(table_ptr, message, OUT).to(tl.pointer_type(OUT_ROW)) + own * size + channels
    tl.store(out, sums.to(OUT_ROW), mask=exists)


def sum_choices(
    device: Device, messages: Messages, places: Tensor, results: Tensor, *, on_input: bool
) -> None:
    """Overwrite all messages' outs with the sums of their rows' choices, in the order in which a row
    has them; zeros for a row of none and for one that doesn't count.

    places: int32 [C], -1 for a choice of nobody. results: [C, D] by place. on_input: weights have
    been multiplied with what experts saw.
    """
    size = results.shape[1]
    tile = min(_TILE, triton.next_power_of_2(size))
    launch(
        device, _sum_choices, (messages.rows, triton.cdiv(size, tile)),
        messages.table, places, results, len(messages.table), messages.top_k, size,
        OUT_ROW=TYPES[messages.dtype], ON_INPUT=on_input, TILE=tile,
        writes=messages.writes, reads=messages.reads,
    )  # fmt: skip
