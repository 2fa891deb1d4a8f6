"""Gated DeltaNet: the gated delta rule, one token after the other, and the norm of what it reads.

All is computed in float32. A state is read only where its sequence goes on: one that begins at
position 0 has nothing to begin with, whatever its slot holds.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.kernels.activations import softplus
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device
from megainfer.models.spec import DeltaNetSpec


class Recurrent(NamedTuple):
    """What the rule is computed from, of T rows and H value heads.

    mixed: float32 [T, channels], queries, keys and values as `convolution.convolve` gives them.
    projected: [T, 2 H], rates, then decays, as they are projected. time_bias, log_decay: float32
    [H]. positions: int64 [T]; a row at -1 is padding, and reads zeros.
    """

    mixed: Tensor
    projected: Tensor
    time_bias: Tensor
    log_decay: Tensor
    positions: Tensor


@triton.jit
def log_of_decay(projected, bias, log_rate):
    """ln of what is left of a state after a token: -e^A softplus(a + bias)."""
    return -tl.exp(log_rate) * softplus(projected.to(tl.float32) + bias)


@triton.jit(do_not_specialize_on_alignment=["starts_ptr", "positions_ptr", "slots_ptr"])
def _recur(
    mixed_ptr, projected_ptr, bias_ptr, log_decay_ptr, positions_ptr, state_ptr, out_ptr,
    starts_ptr, slots_ptr,
    KEY_HEADS: tl.constexpr, HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    KEYS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(2), tl.program_id(1)
    first, stop = tl.load(starts_ptr + sequence), tl.load(starts_ptr + sequence + 1)
    position = tl.load(positions_ptr + first)
    goes_on = position > 0
    i, j = tl.arange(0, KEYS), tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    is_key, is_value = i < KEY, j < VALUE
    out_ptr += head * VALUE + j
    if position < 0:
        tl.store(out_ptr + first * (HEADS * VALUE), j * 0.0, mask=is_value)
        return
    within = is_key[:, None] & is_value
    state_ptr += (tl.load(slots_ptr + sequence) * HEADS + head) * (KEY * VALUE)
    state_ptr += i[:, None] * VALUE + j
    state = tl.load(state_ptr, mask=within & goes_on, other=0.0)
    bias, log_rate = tl.load(bias_ptr + head), tl.load(log_decay_ptr + head)
    q_ptr = mixed_ptr + head // (HEADS // KEY_HEADS) * KEY + i
    k_ptr = q_ptr + KEY_HEADS * KEY
    v_ptr = mixed_ptr + 2 * KEY_HEADS * KEY + head * VALUE + j
    for row in range(first, stop):
        at = row * (2 * KEY_HEADS * KEY + HEADS * VALUE)
        q = tl.load(q_ptr + at, mask=is_key, other=0.0)
        k = tl.load(k_ptr + at, mask=is_key, other=0.0)
        v = tl.load(v_ptr + at, mask=is_value, other=0.0)
        rate = tl.sigmoid(tl.load(projected_ptr + row * (2 * HEADS) + head).to(tl.float32))
        decay = tl.load(projected_ptr + row * (2 * HEADS) + HEADS + head)
        state *= tl.exp(log_of_decay(decay, bias, log_rate))
        correction = rate * (v - tl.sum(state * k[:, None], 0))
        state += k[:, None] * correction
        read = tl.sum(state * q[:, None], 0)
        tl.store(out_ptr + row * (HEADS * VALUE), read, mask=is_value)
    tl.store(state_ptr, state, mask=within)


def recur(
    device: Device, spec: DeltaNetSpec, inputs: Recurrent, state: Tensor, span: Span, out: Tensor
) -> None:
    """The tokens of these sequences, in order, through the rule of `DeltaNetSpec`.

    state: float32 [slots, H, dk, dv], which takes them in. out: float32 [T, H, dv], of whose rows
    theirs are written. A token's result is the same bits however its sequence is cut.
    """
    keys = power_of_two(spec.key_dim)
    values = min(power_of_two(spec.value_dim), 32)
    launch(
        device, _recur, (parts_of(spec.value_dim, values), spec.value_heads, span.count),
        *inputs, state, out, span.row_starts, span.state_slots,
        KEY_HEADS=spec.key_heads, HEADS=spec.value_heads, KEY=spec.key_dim, VALUE=spec.value_dim,
        KEYS=keys, VALUES=values,
        writes=(state, out),
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _norm_gated(
    read_ptr, weight_ptr, gates_ptr, out_ptr, rows, stride, eps,
    HEADS: tl.constexpr, VALUE: tl.constexpr, ROWS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    # Heads of all tokens, one below the other.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, VALUES)
    exists = (row < rows)[:, None] & (j < VALUE)
    x = tl.load(read_ptr + row[:, None] * VALUE + j, mask=exists, other=0.0)
    weight = tl.load(weight_ptr + j, mask=j < VALUE, other=0.0)
    gates_ptr += (row // HEADS * stride + row % HEADS * VALUE)[:, None]
    gate = tl.load(gates_ptr + j, mask=exists, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / VALUE + eps)
    out = x * scale[:, None] * weight * (gate * tl.sigmoid(gate))
    tl.store(out_ptr + row[:, None] * VALUE + j, out.to(out_ptr.dtype.element_ty), mask=exists)


def norm_gated(device: Device, read: Tensor, weight: Tensor, gates: Tensor, eps: float) -> Tensor:
    """Each head's norm, times silu of its gate: a new tensor [T, H * dv] in the dtype of the gates.

    read: float32 [T, H, dv]. weight: float32 [dv]. gates: [T, H * dv], channels side by side.
    """
    tokens, heads, size = read.shape
    out = device.empty(gates.shape, gates.dtype)
    launch(
        device, _norm_gated, (parts_of(tokens * heads, 16),),
        read, weight, gates, out, tokens * heads, gates.stride(0), eps,
        HEADS=heads, VALUE=size, ROWS=16, VALUES=power_of_two(size),
        writes=(out,),
    )  # fmt: skip
    return out
