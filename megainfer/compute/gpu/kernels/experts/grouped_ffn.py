"""Grouped products of experts, over tiles that the device has made of what rows chose.

Each of a fixed number of programs takes tile after tile, so the host needs to know neither how many
rows an expert got nor how many tiles there are.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.formats.expert import ExpertLayout
from megainfer.compute.gpu.formats.matrix import Matrix
from megainfer.compute.gpu.kernels.activations import activation_constants, inner
from megainfer.compute.gpu.kernels.experts.messages import Messages
from megainfer.compute.gpu.kernels.experts.tiles import Sorted
from megainfer.compute.gpu.kernels.experts.types import TYPES
from megainfer.compute.gpu.kernels.experts.weights import add_product
from megainfer.compute.gpu.launching import launch_through
from megainfer.compute.gpu.measured_tiles import Measured, Tiles
from megainfer.compute.gpu.sizes import parts_of
from megainfer.compute.gpu.tile_shape import Product, TileShape, tile_shape
from megainfer.device import Device
from megainfer.models.spec import SILU


@triton.jit
def _rows(x_rows, inputs, size, exists, EVEN: tl.constexpr):
    """x [rows, inputs], zeros where there is none."""
    mask = exists[:, None]
    if not EVEN:
        mask = mask & (inputs < size)[None, :]
    return tl.load(x_rows[:, None] + inputs[None, :], mask=mask, other=0.0)


@triton.jit
def _grouped_product(
    slots_ptr, tiles_ptr, length_ptr, x_ptr, weights_ptr, out_ptr,
    outputs, inputs, x_stride, out_stride,
    codes_at, scales_at, zeros_at, bias_at, stride, scale_columns,
    ROW: tl.constexpr, NUMBER: tl.constexpr, CODE: tl.constexpr, ALIGNED: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, ON_INPUT: tl.constexpr,
    FORMAT: tl.constexpr, SCALE_ROWS: tl.constexpr, GROUP: tl.constexpr,
    PACKED: tl.constexpr, ZEROS: tl.constexpr,
    KIND: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, UP_OFFSET: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    INPUTS: tl.constexpr = STEP // PACKED
    lanes = tl.arange(0, INPUTS)
    across = tl.cdiv(outputs, OUTPUTS)
    for tile in range(tl.program_id(0), tl.load(length_ptr) * across, tl.num_programs(0)):
        tile_ptr = tiles_ptr + tile // across * 3
        expert, end = tl.load(tile_ptr), tl.load(tile_ptr + 2)
        places = tl.load(tile_ptr + 1) + tl.arange(0, ROWS)
        is_row = places < end
        if GATED:
            address = tl.load(x_ptr + places, mask=is_row, other=0)
            x_rows = address.to(tl.pointer_type(ROW))
            if ALIGNED:
                x_rows = tl.multiple_of(x_rows, 16)
            is_there = address != 0
        else:
            x_rows = x_ptr + places.to(tl.int64) * x_stride
            is_there = is_row
        if ON_INPUT:
            weights = tl.load(weights_ptr + places, mask=is_row, other=0.0)
        columns = tile % across * OUTPUTS + tl.arange(0, OUTPUTS)
        is_output = columns < outputs
        columns = tl.where(is_output, columns, 0)
        memory = tl.multiple_of(tl.load(slots_ptr + expert), 16)
        codes_ptr = tl.multiple_of((memory + codes_at).to(tl.pointer_type(CODE)), 16)
        zeros_ptr = (memory + zeros_at).to(tl.pointer_type(tl.uint8))
        if FORMAT == "e2m1":
            scales_ptr = (memory + scales_at).to(tl.pointer_type(tl.int32))
        else:
            scales_ptr = (memory + scales_at).to(tl.pointer_type(tl.float32))
        sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
        up = tl.zeros((ROWS, OUTPUTS), tl.float32)
        for step in range(tl.cdiv(inputs, STEP)):
            first = step * STEP + lanes
            x = _rows(x_rows, first, inputs, is_there, EVEN)
            x_above = x
            if PACKED == 2:
                x_above = _rows(x_rows, first + INPUTS, inputs, is_there, EVEN)
            if ON_INPUT:
                x = x * weights.to(x.dtype)[:, None]
                x_above = x_above * weights.to(x.dtype)[:, None]
            x, x_above = x.to(NUMBER), x_above.to(NUMBER)
            sums = add_product(
                sums, x, x_above, codes_ptr, scales_ptr, zeros_ptr, step, columns, stride,
                scale_columns, FORMAT, PACKED, ZEROS, SCALE_ROWS, GROUP, INPUTS, OUTPUTS,
            )  # fmt: skip
            if GATED:
                up = add_product(
                    up, x, x_above, codes_ptr + outputs * stride,
                    scales_ptr + scale_columns // 2, zeros_ptr + scale_columns // 2, step, columns,
                    stride, scale_columns, FORMAT, PACKED, ZEROS, SCALE_ROWS, GROUP, INPUTS,
                    OUTPUTS,
                )  # fmt: skip
        if BIAS:
            bias_ptr = (memory + bias_at).to(tl.pointer_type(tl.float32)) + columns
            sums += tl.load(bias_ptr)[None, :]
            if GATED:
                up += tl.load(bias_ptr + outputs)[None, :]
        if GATED:
            sums = inner(sums, up, KIND, LIMIT, ALPHA, UP_OFFSET)
        out = out_ptr + places.to(tl.int64)[:, None] * out_stride + columns[None, :]
        tl.store(out, sums.to(NUMBER), mask=is_row[:, None] & is_output[None, :])


class Slots(NamedTuple):
    """Where a layer's experts are. addresses: int64 [E], 0 for an empty slot. held: the memory
    behind them. layout: of each one's. tiles: what was measured for such products."""

    addresses: Tensor
    held: Sequence[Tensor]
    shape: ExpertsShape
    layout: ExpertLayout
    tiles: Tiles


def multiplied_dtype(weights: torch.dtype, rows: torch.dtype) -> torch.dtype:
    """What is multiplied, of weights with codes of this dtype and rows of that: the wider of both;
    codes that aren't floating point become what rows are."""
    return torch.float32 if torch.float32 in (weights, rows) else torch.bfloat16


def gate_up_product(device: Device, slots: Slots, messages: Messages, found: Sorted) -> Tensor:
    """What goes into down, [C, F] in `multiplied_dtype`, choice after choice as they are sorted;
    rows are filled up to a multiple of 16."""
    shape, matrix = slots.shape, slots.layout.gate_up
    dtype = multiplied_dtype(matrix.format.codes, messages.dtype)
    inner_size = -(-shape.intermediate // 16) * 16
    out = device.empty((found.choices, inner_size), dtype)[:, : shape.intermediate]
    _launch(
        device, slots, matrix, found, found.rows, out, messages.dtype,
        reads=messages.reads, bias_at=slots.layout.gate_up_bias_at, ALIGNED=messages.aligned,
        GATED=True, ON_INPUT=shape.weight_on_input,
        **activation_constants(shape.activation),
    )  # fmt: skip
    return out


def down_product(device: Device, slots: Slots, found: Sorted, x: Tensor) -> Tensor:
    """[C, D] in the dtype of x, which is what `gate_up_product` gave."""
    out = device.empty((found.choices, slots.shape.hidden), x.dtype)
    _launch(
        device, slots, slots.layout.down, found, x, out, x.dtype,
        reads=(), bias_at=slots.layout.down_bias_at, ALIGNED=True, GATED=False, ON_INPUT=False,
        **activation_constants(SILU),
    )  # fmt: skip
    return out


def _launch(
    device: Device,
    slots: Slots,
    matrix: Matrix,
    found: Sorted,
    x: Tensor,
    out: Tensor,
    rows: torch.dtype,
    *,
    reads: Sequence[Tensor],
    bias_at: int,
    **constants: object,
) -> None:
    form = matrix.format
    product, usual = product_of(device, slots.shape, matrix, found, out.dtype)
    # Measured with rows in bfloat16: others take twice the memory.
    tile = usual if out.dtype == torch.float32 else slots.tiles.get(product, usual)
    tiles = found.tiles.shape[0] * parts_of(matrix.outputs, tile.outputs)  # that there may be
    launch_through(
        device, _grouped_product, (min(device.processors * tile.resident, tiles),),
        slots.addresses, found.tiles, found.length, x, found.weights, out,
        matrix.outputs, matrix.inputs, x.stride(0), out.stride(0),
        matrix.at, matrix.scales_at, matrix.zeros_at, bias_at, matrix.stride, matrix.scale_columns,
        ROW=TYPES[rows], NUMBER=TYPES[out.dtype], CODE=TYPES[form.codes],
        BIAS=slots.shape.bias, FORMAT=form.kind, SCALE_ROWS=max(form.rows, 1), GROUP=form.group,
        PACKED=form.packed, ZEROS=form.zeros,
        ROWS=tile.rows, OUTPUTS=tile.outputs, STEP=tile.step, EVEN=matrix.inputs % tile.step == 0,
        num_warps=tile.warps, num_stages=tile.stages,
        writes=(out,), reads=chain(slots.held, reads), **constants,
    )  # fmt: skip


def product_of(
    device: Device, shape: ExpertsShape, matrix: Matrix, found: Sorted, dtype: torch.dtype
) -> tuple[Measured, TileShape]:
    """By what such a product is found among those that were measured, and which tile it has where
    it isn't. dtype: of what is multiplied."""
    form = matrix.format
    product = Product(
        gated=matrix.parts == 2,
        scaled=form.rows > 0,
        packed=form.packed == 2,
        wide=dtype == torch.float32,
        simple=not (shape.bias or shape.weight_on_input),
        inputs=matrix.padded,
        architecture=device.chip.architecture,
    )
    usual = tile_shape(product, found.tile_rows, scarce=False)
    tiles = found.tiles.shape[0] * parts_of(matrix.outputs, usual.outputs)
    scarce = tiles < 2 * device.processors
    known = Measured(
        form.name, product.gated, matrix.outputs, matrix.inputs, found.tile_rows, scarce
    )
    return known, tile_shape(product, found.tile_rows, scarce)
