"""Rotation of channels that lie half apart, as they are loaded."""

import triton
import triton.language as tl


@triton.jit
def rotated(x_ptr, factors_ptr, channels, exists, ROTATED: tl.constexpr):
    """Channels of heads, of which the first ROTATED turn by the factors of their positions.

    x_ptr, factors_ptr: where each head, and each position's row of the table, begins; they, and
    `exists`, join with `channels`. Rounded where the reference rounds.
    """
    turned = channels < ROTATED
    x = tl.load(x_ptr + channels, mask=exists, other=0.0)
    partner = (channels + ROTATED // 2) % ROTATED
    swapped = tl.load(x_ptr + partner, mask=exists & turned, other=0.0)
    cos = tl.load(factors_ptr + channels, mask=exists & turned, other=0.0)
    signed_sin = tl.load(factors_ptr + ROTATED + channels, mask=exists & turned, other=0.0)
    return tl.where(turned, x * cos + swapped * signed_sin, x)
