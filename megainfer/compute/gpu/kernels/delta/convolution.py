"""Gated DeltaNet's causal convolution of each channel by itself, and the length of what it gives.

Sequences keep the last inputs. One that begins at position 0 has none, whatever its slot holds.
"""

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import parts_of, power_of_two
from megainfer.compute.reference.kernels.delta_net import LENGTH_EPS
from megainfer.device import Device
from megainfer.models.spec import DeltaNetSpec


@triton.jit(do_not_specialize_on_alignment=["starts_ptr", "positions_ptr", "slots_ptr"])
def _convolve(
    inputs_ptr, past_ptr, taps_ptr, out_ptr, starts_ptr, positions_ptr, slots_ptr,
    channels, stride, eps,
    TAPS: tl.constexpr, KEY_HEADS: tl.constexpr, KEY: tl.constexpr,
    TOKENS: tl.constexpr, PARTS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    sequence, tile = tl.program_id(2), tl.program_id(1)
    first = tl.load(starts_ptr + sequence)
    count = tl.load(starts_ptr + sequence + 1) - first
    position = tl.load(positions_ptr + first)
    if (tile * TOKENS >= count) | (position < 0):
        return
    # A line is a token's channels of one part: a head's query, its key, or as many values.
    line, i = tl.arange(0, TOKENS * PARTS)[:, None], tl.arange(0, KEYS)
    token, part = tile * TOKENS + line // PARTS, tl.program_id(0) * PARTS + line % PARTS
    channel = part * KEY + i
    own = (i < KEY) & (channel < channels)
    past_ptr += tl.load(slots_ptr + sequence) * (TAPS - 1) * channels + channel
    inputs_ptr += first * stride + channel
    total = tl.zeros((TOKENS * PARTS, KEYS), tl.float32)
    for tap in tl.static_range(TAPS):
        at = token.to(tl.int64) + tap - (TAPS - 1)
        new, old = own & (at >= 0) & (at < count), own & (at < 0) & (position > 0)
        x = tl.load(inputs_ptr + at * stride, mask=new, other=0.0).to(tl.float32)
        x += tl.load(past_ptr + (at + TAPS - 1) * channels, mask=old, other=0.0)
        total += x * tl.load(taps_ptr + channel * TAPS + tap, mask=own, other=0.0)
    mixed = total * tl.sigmoid(total)
    length = tl.rsqrt(tl.sum(mixed * mixed, 1)[:, None] + eps)
    mixed *= tl.where(part < 2 * KEY_HEADS, length, 1.0)
    mixed *= tl.where(part < KEY_HEADS, 1.0 / KEY**0.5, 1.0)
    tl.store(out_ptr + (first + token) * channels + channel, mixed, mask=own & (token < count))
    if tile == 0:  # the only one that has read the past
        tl.debug_barrier()
        for n in tl.static_range(TAPS - 1):  # from rows behind row n only
            source = count + n - (TAPS - 1)
            one = own & (line < PARTS)
            of_new, of_old = one & (source >= 0), one & (source < 0) & (position > 0)
            kept = tl.load(inputs_ptr + source * stride, mask=of_new, other=0.0).to(tl.float32)
            kept += tl.load(past_ptr + (count + n) * channels, mask=of_old, other=0.0)
            tl.store(past_ptr + n * channels, kept, mask=one)


def convolve(
    device: Device, spec: DeltaNetSpec, inputs: Tensor, taps: Tensor, past: Tensor, span: Span,
    positions: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """silu of each channel's weighted sum of its last K inputs, into these sequences' rows of out;
    there, keys have length 1 and queries 1 / sqrt(dk).

    inputs: [T, channels or more], queries, keys, values of all heads. taps: float32 [channels, K],
    that of the newest input last. past: float32 [slots, K - 1, channels], the inputs before these,
    oldest first; it becomes the last ones of these. positions: int64 [T]; a row at -1 is padding,
    and is left out. out: float32 [T, channels].
    """
    tokens, keys = 1 if span.most_rows == 1 else 16, power_of_two(spec.key_dim)
    at_once = max(1, 128 // keys)
    parts = parts_of(spec.channels, spec.key_dim * at_once)
    launch(
        device, _convolve, (parts, parts_of(span.most_rows, tokens), span.count),
        inputs, past, taps, out, span.row_starts, positions, span.state_slots,
        spec.channels, inputs.stride(0), LENGTH_EPS,
        TAPS=spec.taps, KEY_HEADS=spec.key_heads, KEY=spec.key_dim,
        TOKENS=tokens, PARTS=at_once, KEYS=keys,
        writes=(past, out),
    )  # fmt: skip
