"""Gated DeltaNet's causal convolution of each channel by itself, and the length of what it gives.

Sequences keep the last inputs. One that begins at position 0 has none, whatever its slot holds.
"""

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.launching import launch
from megainfer.compute.reference.kernels.delta_net import LENGTH_EPS
from megainfer.device import Device
from megainfer.models.spec import DeltaNetSpec


@triton.jit
def _convolve(
    inputs_ptr, past_ptr, taps_ptr, out_ptr, starts_ptr, positions_ptr, slots_ptr,
    channels, stride, eps,
    TAPS: tl.constexpr, KEY_HEADS: tl.constexpr, KEY: tl.constexpr,
    TOKENS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    sequence, tile = tl.program_id(2), tl.program_id(1)
    first = tl.load(starts_ptr + sequence)
    count = tl.load(starts_ptr + sequence + 1) - first
    if tile * TOKENS >= count:
        return
    part, i = tl.program_id(0), tl.arange(0, KEYS)
    channel = part * KEY + i
    own = (i < KEY) & (channel < channels)
    goes_on = tl.load(positions_ptr + first) > 0
    past_ptr += tl.load(slots_ptr + sequence) * (TAPS - 1) * channels + channel
    inputs_ptr += first * stride + channel
    token = tile * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, KEYS), tl.float32)
    for tap in tl.static_range(TAPS):
        at = (token + tap - (TAPS - 1)).to(tl.int64)[:, None]
        new, old = own & (at >= 0) & (at < count), own & (at < 0) & goes_on
        x = tl.load(inputs_ptr + at * stride, mask=new, other=0.0).to(tl.float32)
        x += tl.load(past_ptr + (at + TAPS - 1) * channels, mask=old, other=0.0)
        total += x * tl.load(taps_ptr + channel * TAPS + tap, mask=own, other=0.0)
    mixed = total * tl.sigmoid(total)
    if part < 2 * KEY_HEADS:  # a head's query or its key
        mixed *= tl.rsqrt(tl.sum(mixed * mixed, 1) + eps)[:, None]
    if part < KEY_HEADS:
        mixed *= 1.0 / KEY**0.5
    out_ptr += (first + token)[:, None] * channels + channel
    tl.store(out_ptr, mixed, mask=own & (token < count)[:, None])
    if tile == 0:  # the only one that has read the past
        tl.debug_barrier()
        for n in tl.static_range(TAPS - 1):  # from rows behind row n only
            source = count + n - (TAPS - 1)
            new_one, old_one = own & (source >= 0), own & (source < 0) & goes_on
            kept = tl.load(inputs_ptr + source * stride, mask=new_one, other=0.0).to(tl.float32)
            kept += tl.load(past_ptr + (count + n) * channels, mask=old_one, other=0.0)
            tl.store(past_ptr + n * channels, kept, mask=own)


def convolve(
    device: Device, spec: DeltaNetSpec, inputs: Tensor, taps: Tensor, past: Tensor, span: Span,
    positions: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """silu of each channel's weighted sum of its last K inputs, into these sequences' rows of out;
    there, keys have length 1 and queries 1 / sqrt(dk).

    inputs: [T, channels or more], queries, keys, values of all heads. taps: float32 [channels, K],
    that of the newest input last. past: float32 [slots, K - 1, channels], the inputs before these,
    oldest first; it becomes the last ones of these. positions: int64 [T]. out: float32 [T,
    channels].
    """
    tokens = 1 if span.most_rows == 1 else 16
    parts = triton.cdiv(spec.channels, spec.key_dim)
    launch(
        device, _convolve, (parts, triton.cdiv(span.most_rows, tokens), span.count),
        inputs, past, taps, out, span.row_starts, positions, span.state_slots,
        spec.channels, inputs.stride(0), LENGTH_EPS,
        TAPS=spec.taps, KEY_HEADS=spec.key_heads, KEY=spec.key_dim,
        TOKENS=tokens, KEYS=triton.next_power_of_2(spec.key_dim),
        writes=(past, out),
    )  # fmt: skip
