"""Between a gated network's two products: what its gate goes through, and its product with up."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device
from megainfer.models.spec import ActivationSpec

_TILE = 1024


@triton.jit
def softplus(x):
    """ln(1 + e^x) of float32, exact to the last bits wherever x is."""
    # ln(1 + y) of y = e^-|x| is 2 artanh(y / (2 + y)), whose series needs no logarithm: one of a
    # sum near 1 would have lost what is small.
    y = tl.exp(-tl.abs(x))
    z = y / (2 + y)
    square = z * z
    series = 1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (
        1 / 9 + square * (1 / 11 + square * (1 / 13 + square / 15))))))  # fmt: skip
    return tl.where(x > 0, x, 0.0) + 2 * z * series


@triton.jit
def inner(
    gate, up,
    KIND: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, UP_OFFSET: tl.constexpr,
):  # fmt: skip
    """What goes into down, of float32 tiles; the constants are `activation_constants`."""
    if LIMIT is not None:
        # By comparisons, which leave NaN as it is.
        gate = tl.where(gate > LIMIT, LIMIT, gate)
        up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up))
    up += UP_OFFSET
    if KIND == "gelu":
        activated = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        # 1 + tanh(u) is 2 sigmoid(2u).
        cubic = gate * (1 + 0.044715 * gate * gate)
        activated = gate * tl.sigmoid(1.5957691216057308 * cubic)
    else:
        activated = gate * tl.sigmoid(ALPHA * gate)
    return activated * up


def activation_constants(spec: ActivationSpec) -> dict[str, Any]:
    """Those of `inner`, for whoever launches a kernel that calls it."""
    return {
        "KIND": spec.kind.value,
        "LIMIT": spec.limit,
        "ALPHA": spec.alpha,
        "UP_OFFSET": spec.up_offset,
    }


@triton.jit
def _activate(
    gate_up_ptr, switch_ptr, out_ptr, size, multiplier,
    KIND: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, UP_OFFSET: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * TILE + tl.arange(0, TILE)
    exists = channels < size
    gates = gate_up_ptr + row * 2 * size + channels
    gate = tl.load(gates, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gates + size, mask=exists, other=0.0).to(tl.float32)
    out = inner(gate, up, KIND, LIMIT, ALPHA, UP_OFFSET) * multiplier
    if switch_ptr is not None:
        out *= tl.sigmoid(tl.load(switch_ptr + row).to(tl.float32))
    tl.store(out_ptr + row * size + channels, out.to(out_ptr.dtype.element_ty), mask=exists)


def activate(
    device: Device,
    gate_up: Tensor,
    spec: ActivationSpec,
    switch: Tensor | None = None,
    multiplier: float = 1.0,
) -> Tensor:
    """What goes into down, [T, F] in the dtype of gate_up [T, 2F], gate first, contiguous.

    Times multiplier, and times the sigmoid of each row's switch [T, 1], which is as much as if
    down's output were. Computed in float32 and rounded once.
    """
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = device.empty((rows, size), gate_up.dtype)
    tile = min(_TILE, power_of_two(size))
    launch(
        device, _activate, (rows, parts_of(size, tile)),
        gate_up, switch, out, size, multiplier,
        **activation_constants(spec), TILE=tile,
        writes=(out,),
    )  # fmt: skip
    return out
