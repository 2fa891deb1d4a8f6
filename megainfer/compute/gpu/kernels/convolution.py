"""A causal convolution of each channel by itself; sequences keep the last of their inputs."""

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.launching import launch
from megainfer.device import Device


@triton.jit
def _convolve(
    inputs_ptr, past_ptr, taps_ptr, out_ptr, starts_ptr, positions_ptr, slots_ptr,
    channels, stride,
    TAPS: tl.constexpr, TOKENS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    sequence, tile = tl.program_id(2), tl.program_id(1)
    first = tl.load(starts_ptr + sequence)
    count = tl.load(starts_ptr + sequence + 1) - first
    if tile * TOKENS >= count:
        return
    channel = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    own = channel < channels
    goes_on = tl.load(positions_ptr + first) > 0
    past_ptr += tl.load(slots_ptr + sequence) * (TAPS - 1) * channels + channel
    inputs_ptr += first * stride + channel
    token = tile * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, WIDE), tl.float32)
    for tap in tl.static_range(TAPS):
        at = (token + tap - (TAPS - 1)).to(tl.int64)[:, None]
        new, old = own & (at >= 0) & (at < count), own & (at < 0) & goes_on
        x = tl.load(inputs_ptr + at * stride, mask=new, other=0.0).to(tl.float32)
        x += tl.load(past_ptr + (at + TAPS - 1) * channels, mask=old, other=0.0)
        total += x * tl.load(taps_ptr + channel * TAPS + tap, mask=own, other=0.0)
    out_ptr += (first + token)[:, None] * channels + channel
    tl.store(out_ptr, total * tl.sigmoid(total), mask=own & (token < count)[:, None])
    if tile == 0:  # the only one that has read the past
        tl.debug_barrier()
        for i in tl.static_range(TAPS - 1):  # from rows behind row i only
            at = count + i - (TAPS - 1)
            new, old = own & (at >= 0), own & (at < 0) & goes_on
            x = tl.load(inputs_ptr + at * stride, mask=new, other=0.0).to(tl.float32)
            x += tl.load(past_ptr + (at + TAPS - 1) * channels, mask=old, other=0.0)
            tl.store(past_ptr + i * channels, x, mask=own)


def convolve(
    device: Device, inputs: Tensor, past: Tensor, taps: Tensor, span: Span, positions: Tensor,
    out: Tensor,
) -> None:  # fmt: skip
    """silu of each channel's weighted sum of its last K inputs, into these sequences' rows of out.

    inputs: [T, C or more], channels side by side. past: float32 [slots, K - 1, C], the inputs
    before these, oldest first; it becomes the last ones of these, and is not read where a sequence
    begins. taps: float32 [C, K], that of the newest input last. positions: int64 [T]. out: float32
    [T, C].
    """
    channels, count = taps.shape
    tokens, wide = (1, 256) if span.most_rows == 1 else (16, 64)
    launch(
        device, _convolve,
        (triton.cdiv(channels, wide), triton.cdiv(span.most_rows, tokens), span.count),
        inputs, past, taps, out, span.row_starts, positions, span.state_slots,
        channels, inputs.stride(0), TAPS=count, TOKENS=tokens, WIDE=wide,
        writes=(past, out),
    )  # fmt: skip
