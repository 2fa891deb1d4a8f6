"""Dense products of which a row's bits don't depend on the others: one tile for any number."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of
from megainfer.device import Device

ROWS, OUTPUTS, STEP = 64, 64, 64
"""Of a tile; 64 rows are what Hopper's and Blackwell's tensor cores take at least."""
WIDE_ROWS = 16
"""Of float32, which no tensor core takes: its products are in registers."""


@triton.jit(do_not_specialize=["rows"])
def _product(
    x_ptr, weight_ptr, bias_ptr, out_ptr,
    rows, outputs, inputs, x_batch, x_row, weight_batch, weight_row, weight_column,
    out_batch, out_row, scale,
    BIAS: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    output = (tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    channel = tl.arange(0, STEP)
    is_row, is_output = row < rows, output < outputs
    x_ptr += batch * x_batch + row[:, None] * x_row
    weight_ptr += batch * weight_batch + output[None, :] * weight_row
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, inputs, STEP):
        at = start + channel
        exists = at < inputs
        x = tl.load(x_ptr + at[None, :], mask=is_row[:, None] & exists[None, :], other=0.0)
        weight = tl.load(
            weight_ptr + at[:, None] * weight_column,
            mask=exists[:, None] & is_output[None, :], other=0.0,
        )  # fmt: skip
        sums = tl.dot(x, weight, sums, input_precision="ieee")
    if BIAS:
        sums += tl.load(bias_ptr + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
    out_ptr += batch * out_batch + row[:, None] * out_row + output[None, :]
    stored = is_row[:, None] & is_output[None, :]
    if ADD:
        sums = tl.load(out_ptr, mask=stored, other=0.0).to(tl.float32) + sums * scale
    tl.store(out_ptr, sums.to(out_ptr.dtype.element_ty), mask=stored)


def multiply(
    device: Device,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> None:
    """out[b] = x[b] @ weight[b].T + bias: x [B, T, K], weight [B, N, K], out [B, T, N], bias [N];
    rows of x and of out are contiguous. scale: the product, times it, is added to out instead.

    Sums are float32, in the order of K.
    """
    batch, rows, inputs = x.shape
    outputs, tile = weight.shape[1], WIDE_ROWS if x.dtype == torch.float32 else ROWS
    assert x.stride(2) == out.stride(2) == 1, "rows of which a channel isn't next to the next"
    launch(
        device, _product, (parts_of(rows, tile), parts_of(outputs, OUTPUTS), batch),
        x, weight, weight if bias is None else bias, out,
        rows, outputs, inputs, x.stride(0), x.stride(1), *weight.stride(), out.stride(0),
        out.stride(1), 1.0 if scale is None else scale,
        BIAS=bias is not None, ADD=scale is not None,
        ROWS=tile, OUTPUTS=OUTPUTS, STEP=STEP,
        num_warps=4, num_stages=3,
        writes=(out,),
    )  # fmt: skip
