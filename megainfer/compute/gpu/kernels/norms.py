"""Normalisation of rows."""

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import power_of_two
from megainfer.device import Device
from megainfer.models.spec import NormKind, NormSpec


@triton.jit
def _norm_rows(
    x_ptr, weight_ptr, bias_ptr, out_ptr, size, eps,
    CENTRED: tl.constexpr, BIAS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * size
    channels = tl.arange(0, TILE)
    exists = channels < size
    x = tl.load(x_ptr + row + channels, mask=exists, other=0.0)
    dtype: tl.constexpr = x.dtype
    wide = x.to(tl.float32)
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
    device: Device, x: Tensor, weight: Tensor, spec: NormSpec, bias: Tensor | None = None
) -> Tensor:
    """The norm of x [T, D], a new tensor.

    weight, bias: [D] in x's dtype, contiguous as x is; an offset of the weight has been added.
    """
    out, tile = device.empty(x.shape, x.dtype), power_of_two(x.shape[1])
    launch(
        device, _norm_rows, (x.shape[0],),
        x, weight, weight if bias is None else bias, out, x.shape[1], spec.eps,
        CENTRED=spec.kind is NormKind.LAYER, BIAS=bias is not None, TILE=tile,
        num_warps=min(16, max(4, tile // 512)),
        writes=(out,),
    )  # fmt: skip
    return out
