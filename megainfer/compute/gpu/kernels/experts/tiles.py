"""Choices sorted by expert, and the tiles of rows that a grouped product goes through.

All on the device, where alone it is known who chose what. An expert's choices stay in the order of
rows, and nobody counts by atomics, so nothing depends on which program was first.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.kernels.experts.messages import (
    FIELDS,
    HIDDEN,
    IDS,
    WEIGHTS,
    Messages,
    message_of,
    row_within,
)
from megainfer.compute.gpu.launching import launch_through
from megainfer.compute.gpu.sizes import power_of_two
from megainfer.device import Device

_BLOCK = 1024
"""Choices that a program looks at together."""


class Sorted(NamedTuple):
    """C choices there may be, those of experts that are here first, expert by expert.

    counts: int64 [E]. places: int32 [C], by choice: where it is now, -1: nowhere. rows: int64 [C],
    where the hidden state of each lies; 0 for one that was gone when it was looked for again.
    weights: float32 [C]. tiles: int32 [tiles there may be, 3]: expert, first choice, the choice
    behind the expert's last. length: int32 [1], how many tiles there are. tile_rows: choices of a
    tile.
    """

    counts: Tensor
    places: Tensor
    rows: Tensor
    weights: Tensor
    tiles: Tensor
    length: Tensor
    tile_rows: int

    @property
    def choices(self) -> int:
        """C."""
        return self.places.numel()


@triton.jit
def _chosen(table_ptr, messages, choices, choice, top_k):
    """Of a tile of choices: the expert, -1 where nobody's, its message and row, and which of the
    row's choices it is."""
    exists = choice < choices
    row = tl.where(exists, choice, 0) // top_k
    message = message_of(table_ptr, messages, row)
    within = row_within(table_ptr, message, row)
    ids = tl.load(table_ptr + message * FIELDS + IDS).to(tl.pointer_type(tl.int32))
    at = within * top_k + choice % top_k
    expert = tl.load(ids + at, mask=exists & (within >= 0), other=-1)
    return expert, message, within, at


@triton.jit
def _count_choices(
    table_ptr, slots_ptr, counts_ptr, places_ptr, messages, choices, top_k, BLOCK: tl.constexpr
):
    expert = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    # Those of nobody are nowhere, and only they are not told their place later.
    for first in range(expert * BLOCK, choices, tl.num_programs(0) * BLOCK):
        tl.store(places_ptr + first + lanes, -1, mask=first + lanes < choices)
    is_here = tl.load(slots_ptr + expert) != 0
    count = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, tl.where(is_here, choices, 0), BLOCK):
        chosen, _, _, _ = _chosen(table_ptr, messages, choices, first + lanes, top_k)
        count += (chosen == expert).to(tl.int64)
    tl.store(counts_ptr + expert, tl.sum(count, 0))


@triton.jit
def _sort_choices(
    table_ptr, counts_ptr, places_ptr, rows_ptr, weights_ptr, tiles_ptr, length_ptr,
    messages, choices, top_k, row_bytes, experts,
    TILE_ROWS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    all_experts = tl.arange(0, EXPERTS)
    counts = tl.load(counts_ptr + all_experts, mask=all_experts < experts, other=0).to(tl.int32)
    tiles = (counts + TILE_ROWS - 1) // TILE_ROWS
    earlier = all_experts < expert
    begin = tl.sum(tl.where(earlier, counts, 0), 0)
    end = begin + tl.sum(tl.where(all_experts == expert, counts, 0), 0)
    if expert == 0:
        tl.store(length_ptr, tl.sum(tiles, 0))
    tile_ptr = tiles_ptr + tl.sum(tl.where(earlier, tiles, 0), 0) * 3
    for first in range(begin, end, TILE_ROWS):
        tl.store(tile_ptr, expert)
        tl.store(tile_ptr + 1, first)
        tl.store(tile_ptr + 2, end)
        tile_ptr += 3
    lanes = tl.arange(0, BLOCK)
    place = begin
    for first in range(0, tl.where(begin < end, choices, 0), BLOCK):
        choice = first + lanes
        chosen, message, within, at = _chosen(table_ptr, messages, choices, choice, top_k)
        own = (chosen == expert).to(tl.int32)
        places = place + tl.cumsum(own, 0) - own
        # A peer can write into its slot at any time: there is no more room than was counted.
        fits = (own != 0) & (places < end)
        line_ptr = table_ptr + message * FIELDS
        address = tl.load(line_ptr + HIDDEN) + within * row_bytes
        weights = tl.load(line_ptr + WEIGHTS).to(tl.pointer_type(tl.float32))
        tl.store(places_ptr + choice, places, mask=fits)
        tl.store(rows_ptr + places, address, mask=fits)
        tl.store(weights_ptr + places, tl.load(weights + at, mask=fits, other=0.0), mask=fits)
        place += tl.sum(own, 0)
    for first in range(place, end, BLOCK):
        tl.store(rows_ptr + first + lanes, 0, mask=first + lanes < end)


def count_choices(device: Device, messages: Messages, slots: Tensor, counts: Tensor) -> Tensor:
    """Fill `counts`, int64 [E], with how many choices each expert got; places, int32 [C], that say
    -1 everywhere.

    slots: int64 [E], 0 where no expert is. Choices of none, of an empty slot and of rows that don't
    count are nobody's.
    """
    choices = messages.rows * messages.top_k
    places = device.empty((choices,), torch.int32)
    launch_through(
        device, _count_choices, counts.shape,
        messages.table, slots, counts, places, messages.lines, choices, messages.top_k,
        BLOCK=_block(choices),
        writes=(counts, places), reads=messages.reads,
    )  # fmt: skip
    return places


def sort_choices(device: Device, messages: Messages, slots: Tensor, tile_rows: int) -> Sorted:
    """The choices of all messages; slots: see `count_choices`. For no rows nothing is launched
    after the counting."""
    experts, choices = slots.shape[0], messages.rows * messages.top_k
    counts = device.empty((experts,), torch.int64)
    found = Sorted(
        counts,
        count_choices(device, messages, slots, counts),
        device.empty((choices,), torch.int64),
        device.empty((choices,), torch.float32),
        device.empty((most_tiles(choices, experts, tile_rows), 3), torch.int32),
        device.empty((1,), torch.int32),
        tile_rows,
    )
    written = (found.places, found.rows, found.weights, found.tiles, found.length)
    launch_through(
        device, _sort_choices, (experts if choices else 0,),
        messages.table, counts, *written, messages.lines, choices, messages.top_k,
        messages.row_bytes, experts,
        TILE_ROWS=tile_rows, EXPERTS=power_of_two(experts), BLOCK=_block(choices),
        writes=written, reads=messages.reads,
    )  # fmt: skip
    return found


def most_tiles(choices: int, experts: int, tile_rows: int) -> int:
    """That so many choices can take, whosever they are."""
    return min(choices, experts + choices // tile_rows)


def _block(choices: int) -> int:
    return min(_BLOCK, max(16, power_of_two(choices)))
