"""Normalisation of rows, with what is added to the residual stream before it."""

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.launching import launch
from megainfer.device import Device
from megainfer.models.spec import NormKind, NormSpec


@triton.jit
def _norm_rows(
    x_ptr, added_ptr, weight_ptr, bias_ptr, out_ptr, size, residual, eps,
    ADDED: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * size
    channels = tl.arange(0, TILE)
    exists = channels < size
    x = tl.load(x_ptr + row + channels, mask=exists, other=0.0)
    dtype: tl.constexpr = x.dtype
    wide = x.to(tl.float32)
    if ADDED:
        added = tl.load(added_ptr + row + channels, mask=exists, other=0.0).to(tl.float32)
        wide = (wide + added * residual).to(dtype).to(tl.float32)
        tl.store(x_ptr + row + channels, wide.to(dtype), mask=exists)
    if CENTRED:
        wide = tl.where(exists, wide - tl.sum(wide, 0) / size, 0.0)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    weight = tl.load(weight_ptr + channels, mask=exists, other=0.0)
    if CENTRED:
        out = wide * scale * weight.to(tl.float32)
        if BIAS:
            out += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    else:
        # Rounded before it is scaled, as in transformers.
        out = ((wide * scale).to(dtype) * weight).to(tl.float32)
        if BIAS:
            out = out.to(dtype).to(tl.float32) + tl.load(
                bias_ptr + channels, mask=exists, other=0.0
            )
    tl.store(out_ptr + row + channels, out.to(dtype), mask=exists)


def norm_rows(
    device: Device,
    x: Tensor,
    weight: Tensor,
    spec: NormSpec,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    residual: float = 1.0,
) -> Tensor:
    """The norm of x [T, D], a new tensor; `added` [T, D], times `residual`, is added to x before.

    weight, bias: [D] in x's dtype, contiguous as x is; an offset of the weight has been added.
    """
    out = device.empty(x.shape, x.dtype)
    launch(
        device, _norm_rows, (x.shape[0],),
        x, x if added is None else added, weight, weight if bias is None else bias, out,
        x.shape[1], residual, spec.eps,
        ADDED=added is not None, CENTRED=spec.kind is NormKind.LAYER, BIAS=bias is not None,
        TILE=triton.next_power_of_2(x.shape[1]),
        writes=(out,) if added is None else (out, x),
    )  # fmt: skip
    return out
