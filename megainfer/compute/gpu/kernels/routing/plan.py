"""What each expert node is sent, for all nodes at once."""

import triton
import triton.language as tl
from torch import float32, int32, int64

from megainfer.compute.gpu.homes import HomeTable
from megainfer.compute.gpu.kernels.routing.gate import Choices
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device
from megainfer.m2n.mailbox import Part

_BLOCK = 256
"""Tokens of one program; a step of more takes a second launch."""

_ALIGNED = 16
"""Each node's part begins at a multiple of so many rows: kernels are compiled for whether memory is
aligned to 16 bytes, and once is enough."""


@triton.jit
def _is_sent(nodes_ptr, node, tokens, num_tokens, K: tl.constexpr, K_TILE: tl.constexpr):
    # Of a block of tokens: which of their choices live on a node, [BLOCK, K_TILE], and whether any
    # does, int32 [BLOCK].
    slots = tl.arange(0, K_TILE)
    at = tokens.to(tl.int64)[:, None] * K + slots
    exists = (tokens < num_tokens)[:, None] & (slots < K)
    here = tl.load(nodes_ptr + at, mask=exists, other=-1) == node
    return here, tl.max(here.to(tl.int32), 1)


@triton.jit
def _count_rows(
    nodes_ptr, of_blocks_ptr, num_tokens,
    K: tl.constexpr, K_TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    node, block = tl.program_id(0), tl.program_id(1)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    _, sent = _is_sent(nodes_ptr, node, tokens, num_tokens, K, K_TILE)
    tl.store(of_blocks_ptr + node * tl.num_programs(1) + block, tl.sum(sent))


@triton.jit
def _plan(
    nodes_ptr, choice_ids_ptr, choice_weights_ptr, of_blocks_ptr,
    rows_ptr, local_ids_ptr, weights_ptr, places_ptr, count_ptr, num_tokens, stride,
    COUNTED: tl.constexpr, K: tl.constexpr, K_TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    node, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    exists = tokens < num_tokens
    slots = tl.arange(0, K_TILE)
    here, sent = _is_sent(nodes_ptr, node, tokens, num_tokens, K, K_TILE)

    # How many rows the blocks before have, and how many all have.
    before, count = 0, tl.sum(sent)
    if COUNTED:
        count = 0
        for first in range(0, blocks, BLOCK):
            others = first + tl.arange(0, BLOCK)
            rows = tl.load(of_blocks_ptr + node * blocks + others, mask=others < blocks, other=0)
            before += tl.sum(tl.where(others < block, rows, 0))
            count += tl.sum(rows)

    is_row = sent == 1
    places = before + tl.cumsum(sent, 0) - 1
    own = node.to(tl.int64) * stride  # where this node's part begins
    tl.store(places_ptr + own + tokens, tl.where(is_row, places, -1), mask=exists)
    tl.store(rows_ptr + own + places, tokens.to(tl.int64), mask=is_row)
    at = tokens.to(tl.int64)[:, None] * K + slots
    local_ids = tl.load(choice_ids_ptr + at, mask=here, other=-1)
    weights = tl.load(choice_weights_ptr + at, mask=here, other=0.0)
    to = (own + places)[:, None] * K + slots
    writes = is_row[:, None] & (slots < K)
    tl.store(local_ids_ptr + to, local_ids, mask=writes)
    tl.store(weights_ptr + to, weights, mask=writes)

    # Behind them all, padding: each block fills what of it lies at its own tokens' numbers.
    is_padding = exists & (tokens >= count)
    tl.store(rows_ptr + own + tokens, tl.zeros([BLOCK], tl.int64), mask=is_padding)
    to = (own + tokens)[:, None] * K + slots
    writes = is_padding[:, None] & (slots < K)
    tl.store(local_ids_ptr + to, tl.full([BLOCK, K_TILE], -1, tl.int32), mask=writes)
    tl.store(weights_ptr + to, tl.zeros([BLOCK, K_TILE], tl.float32), mask=writes)
    if block == 0:
        tl.store(count_ptr + node, count)


def plan(device: Device, choices: Choices, homes: HomeTable) -> tuple[Part, ...]:
    """What each expert node is sent: `reference.kernels.padded_plan`, and the rows' places.

    Where there is one node it is sent all rows as they are.
    """
    if homes.num_nodes == 1:
        return (Part(choices.rows, choices.local_ids, choices.weights),)
    parts = _padded(device, choices, homes.num_nodes)
    nothing = Part(choices.rows[:0], choices.local_ids[:0], choices.weights[:0])
    return tuple(part if n in homes.nodes else nothing for n, part in enumerate(parts))


def _padded(device: Device, choices: Choices, num_nodes: int) -> list[Part]:
    """A part of T rows for each node."""
    num_tokens, top_k = choices.local_ids.shape
    # Without tokens there are counts to be written still.
    grid = (num_nodes, max(1, parts_of(num_tokens, _BLOCK)))
    sizes = {"K": top_k, "K_TILE": power_of_two(top_k), "BLOCK": _BLOCK}
    stride = parts_of(num_tokens, _ALIGNED) * _ALIGNED
    of_blocks = None
    if grid[1] > 1:
        of_blocks = device.empty(grid, int32)
        launch(
            device, _count_rows, grid,
            choices.nodes, of_blocks, num_tokens,
            **sizes,
            writes=(of_blocks,),
        )  # fmt: skip
    count = device.empty((num_nodes, 1), int32)
    of_tokens = (
        device.empty((num_nodes, stride), int64),
        device.empty((num_nodes, stride, top_k), int32),
        device.empty((num_nodes, stride, top_k), float32),
        device.empty((num_nodes, stride), int32),
    )
    launch(
        device, _plan, grid,
        choices.nodes, choices.local_ids, choices.weights, of_blocks,
        *of_tokens, count, num_tokens, stride,
        **sizes, COUNTED=of_blocks is not None,
        num_warps=8,  # with four a compiler spills
        writes=(*of_tokens, count),
    )  # fmt: skip
    columns = (each[:, :num_tokens].unbind() for each in of_tokens)
    return [
        Part(rows, local_ids, weights, own, places)
        for rows, local_ids, weights, places, own in zip(*columns, count.unbind(), strict=True)
    ]
