"""The best token of each row of logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.kernels.sampling.candidates import (
    best_first,
    ordered,
    place_of,
    tiles_of,
)
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device


@triton.jit
def _best_of_parts(logits_ptr, parts_ptr, size, TILE: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    places = part * TILE + tl.arange(0, TILE)
    exist = places < size
    x = tl.load(logits_ptr + row * size + places, mask=exist, other=0.0)
    key = tl.where(x == x, ordered(x), 0xFFFFFFFF)  # NaN is above all
    first = tl.where(exist, best_first(key, places), -0x8000000000000000)
    tl.store(parts_ptr + row * tl.num_programs(1) + part, tl.max(first, 0))


@triton.jit
def _best_of_rows(logits_ptr, parts_ptr, values_ptr, ids_ptr, size, num_parts, PARTS: tl.constexpr):
    row, parts = tl.program_id(0).to(tl.int64), tl.arange(0, PARTS)
    exist = parts < num_parts
    first = tl.load(parts_ptr + row * num_parts + parts, mask=exist, other=-0x8000000000000000)
    place = place_of(tl.max(first, 0))
    tl.store(ids_ptr + row, place)
    tl.store(values_ptr + row, tl.load(logits_ptr + row * size + place))


def best(device: Device, logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `TokenKernels.best`: of logits, float32 [S, V] and contiguous, [S] values and places.

    A row is split over programs and merged, in integers, so that no order shows in the result.
    """
    assert logits.is_contiguous(), f"rows that lie {logits.stride(0)} apart"
    rows, size = logits.shape
    tile, _ = tiles_of(size)
    num_parts = parts_of(size, tile)
    parts = device.empty((rows, num_parts), torch.int64)
    values, ids = device.empty((rows,), torch.float32), device.empty((rows,), torch.int64)
    launch(
        device, _best_of_parts, (rows, num_parts), logits, parts, size, TILE=tile, writes=(parts,)
    )
    launch(
        device, _best_of_rows, (rows,), logits, parts, values, ids, size, num_parts,
        PARTS=power_of_two(num_parts), writes=(values, ids),
    )  # fmt: skip
    return values, ids
