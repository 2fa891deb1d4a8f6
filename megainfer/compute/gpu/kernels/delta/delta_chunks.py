"""The gated delta rule for many tokens: chunk by chunk, in products of matrices.

Of a chunk's tokens, with logarithms of decays g, their running sums G, rates b, and the state S
before them, what each adds to the state as k u^T is (Yang, Kautz and Hatamizadeh, 2024, section 3)

    u_t = b_t (v_t - e^(G_t) S^T k_t - sum over i < t of e^(G_t - G_i) (k_t . k_i) u_i)

a triangular system (I + A) u = r. `_prepare` inverts I + A for all chunks at once, by forward
substitution (the powers of A, which would need no order, grow beyond float32 where keys are alike);
`_pass_on` takes a head's chunks in turn, some columns of its state a program.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.kernels.delta.delta_net import Recurrent, log_of_decay
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.device import Device
from megainfer.models.spec import DeltaNetSpec


@triton.jit(do_not_specialize_on_alignment=["starts_ptr"])
def _prepare(
    mixed_ptr, projected_ptr, bias_ptr, log_decay_ptr, starts_ptr,
    inverse_ptr, scores_ptr, sums_ptr,
    KEY_HEADS: tl.constexpr, HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(2), tl.program_id(1)
    first, stop = tl.load(starts_ptr + sequence), tl.load(starts_ptr + sequence + 1)
    t, i = tl.arange(0, CHUNK), tl.arange(0, KEYS)
    row = first + tl.program_id(0) * CHUNK + t
    exists = row < stop
    if first + tl.program_id(0) * CHUNK >= stop:
        return
    q_ptr = mixed_ptr + row[:, None] * (2 * KEY_HEADS * KEY + HEADS * VALUE)
    q_ptr += head // (HEADS // KEY_HEADS) * KEY + i
    scores, inverse = tl.zeros((CHUNK, CHUNK), tl.float32), tl.zeros((CHUNK, CHUNK), tl.float32)
    for done in range(0, KEY, KEYS):
        within = exists[:, None] & (done + i < KEY)
        q = tl.load(q_ptr + done, mask=within, other=0.0)
        k = tl.load(q_ptr + KEY_HEADS * KEY + done, mask=within, other=0.0)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="tf32x3")
        inverse = tl.dot(k, tl.trans(k), inverse, input_precision="tf32x3")
    projected_ptr += row * (2 * HEADS) + head
    rate = tl.sigmoid(tl.load(projected_ptr, mask=exists, other=0.0).to(tl.float32))
    decay = tl.load(projected_ptr + HEADS, mask=exists, other=0.0)
    log = log_of_decay(decay, tl.load(bias_ptr + head), tl.load(log_decay_ptr + head))
    sums = tl.cumsum(tl.where(exists, log, 0.0), 0)
    # e^(G_t - G_i), of which those with i > t might overflow.
    past = t[:, None] >= t
    fades = tl.exp(tl.where(past, sums[:, None] - sums, 0.0))
    scores = tl.where(past, scores * fades, 0.0)
    # -A, of which row by row becomes that of (I + A)^-1 - I.
    inverse = tl.where(t[:, None] > t, -rate[:, None] * inverse * fades, 0.0)
    for n in range(1, CHUNK):
        own = tl.sum(tl.where((t == n)[:, None], inverse, 0.0), 0)
        own += tl.sum(own[:, None] * inverse, 0)
        inverse = tl.where((t == n)[:, None], own, inverse)
    inverse += tl.where(t[:, None] == t, 1.0, 0.0)
    # Rows of this launch, from 0.
    line = (row - tl.load(starts_ptr)) * HEADS + head
    tl.store(sums_ptr + line, sums, mask=exists)
    tl.store(inverse_ptr + line[:, None] * CHUNK + t, inverse, mask=exists[:, None])
    tl.store(scores_ptr + line[:, None] * CHUNK + t, scores, mask=exists[:, None])


@triton.jit(do_not_specialize_on_alignment=["starts_ptr", "positions_ptr", "slots_ptr"])
def _pass_on(
    mixed_ptr, projected_ptr, inverse_ptr, scores_ptr, sums_ptr, positions_ptr, state_ptr, out_ptr,
    starts_ptr, slots_ptr,
    KEY_HEADS: tl.constexpr, HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    KEYS: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(2), tl.program_id(1)
    origin, first = tl.load(starts_ptr), tl.load(starts_ptr + sequence)
    stop = tl.load(starts_ptr + sequence + 1)
    goes_on = tl.load(positions_ptr + first) > 0
    t, i = tl.arange(0, CHUNK), tl.arange(0, KEYS)
    j = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    is_value = j < VALUE
    state_ptr += (tl.load(slots_ptr + sequence) * HEADS + head) * (KEY * VALUE)
    state_ptr += i[:, None] * VALUE + j
    q_ptr = mixed_ptr + head // (HEADS // KEY_HEADS) * KEY + i
    k_ptr = q_ptr + KEY_HEADS * KEY
    v_ptr = mixed_ptr + 2 * KEY_HEADS * KEY + head * VALUE + j
    for begin in range(first, stop, CHUNK):
        row = begin + t
        exists = row < stop
        valued = exists[:, None] & is_value
        at = row[:, None] * (2 * KEY_HEADS * KEY + HEADS * VALUE)
        known = tl.zeros((CHUNK, VALUES), tl.float32)
        read = tl.zeros((CHUNK, VALUES), tl.float32)
        for done in range(0, KEY, KEYS):
            within = exists[:, None] & (done + i < KEY)
            kept = (done + i < KEY)[:, None] & is_value & (goes_on | (begin > first))
            q = tl.load(q_ptr + at + done, mask=within, other=0.0)
            k = tl.load(k_ptr + at + done, mask=within, other=0.0)
            state = tl.load(state_ptr + done * VALUE, mask=kept, other=0.0)
            read = tl.dot(q, state, read, input_precision="tf32x3")
            known = tl.dot(k, state, known, input_precision="tf32x3")
        v = tl.load(v_ptr + at, mask=valued, other=0.0)
        rate = tl.load(projected_ptr + row * (2 * HEADS) + head, mask=exists, other=0.0)
        rate = tl.sigmoid(rate.to(tl.float32))
        line = (row - origin) * HEADS + head
        square = line[:, None] * CHUNK + t
        sums = tl.load(sums_ptr + line, mask=exists, other=0.0)
        inverse = tl.load(inverse_ptr + square, mask=exists[:, None], other=0.0)
        scores = tl.load(scores_ptr + square, mask=exists[:, None], other=0.0)
        added = rate[:, None] * (v - tl.exp(sums)[:, None] * known)
        added = tl.dot(inverse, added, input_precision="tf32x3")
        read = tl.dot(scores, added, read * tl.exp(sums)[:, None], input_precision="tf32x3")
        tl.store(out_ptr + (row[:, None] * HEADS + head) * VALUE + j, read, mask=valued)
        last = tl.min(sums, 0)  # they only fall
        remains = tl.exp(last - sums)[:, None]
        tl.debug_barrier()  # all threads have read the state, which they now change
        for done in range(0, KEY, KEYS):
            within = exists[:, None] & (done + i < KEY)
            own = (done + i < KEY)[:, None] & is_value
            k = tl.load(k_ptr + at + done, mask=within, other=0.0) * remains
            kept = own & (goes_on | (begin > first))
            state = tl.load(state_ptr + done * VALUE, mask=kept, other=0.0) * tl.exp(last)
            state = tl.dot(tl.trans(k), added, state, input_precision="tf32x3")
            tl.store(state_ptr + done * VALUE, state, mask=own)
        tl.debug_barrier()  # all have changed it


def recur_by_chunks(
    device: Device, spec: DeltaNetSpec, inputs: Recurrent, state: Tensor, span: Span, out: Tensor
) -> None:
    """As `delta_net.recur`, but for the order of sums."""
    chunk = 16 if span.most_rows <= 16 else 32  # with 64 registers would not do
    values = min(max(power_of_two(spec.value_dim), 16), 32)
    sizes: dict[str, Any] = {
        "KEY_HEADS": spec.key_heads,
        "HEADS": spec.value_heads,
        "KEY": spec.key_dim,
        "VALUE": spec.value_dim,
        "KEYS": min(max(power_of_two(spec.key_dim), 16), 32),
        "CHUNK": chunk,
    }
    mixed, projected, bias, log_decay, positions = inputs
    lines = span.num_rows * spec.value_heads
    inverse, scores = (device.empty((lines, chunk), torch.float32) for _ in range(2))
    sums = device.empty((lines,), torch.float32)
    launch(
        device, _prepare, (parts_of(span.most_rows, chunk), spec.value_heads, span.count),
        mixed, projected, bias, log_decay, span.row_starts, inverse, scores, sums,
        **sizes, num_warps=4, num_stages=2, writes=(inverse, scores, sums),
    )  # fmt: skip
    launch(
        device, _pass_on, (parts_of(spec.value_dim, values), spec.value_heads, span.count),
        mixed, projected, inverse, scores, sums, positions, state, out,
        span.row_starts, span.state_slots,
        **sizes, VALUES=values, num_warps=4, num_stages=2, writes=(state, out),
    )  # fmt: skip
