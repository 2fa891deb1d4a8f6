"""Softmax over keys that come a part at a time (Milakov and Gimelshein, 2018), in powers of two.

Of some rows: `top` [rows], the largest score so far; `total` [rows], the sum of 2^(score - top);
`sums` [rows, channels], values so weighted; all in float32.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e38)
"""Below every score; finite, so that it can be subtracted from itself."""
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def begun(ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Over no keys."""
    top = tl.full((ROWS,), LOWEST, tl.float32)
    return top, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, CHANNELS), tl.float32)


@triton.jit
def begun_with(sinks_ptr, heads, exists, CHANNELS: tl.constexpr):
    """Over each row's sink, which has no value."""
    top = tl.load(sinks_ptr + heads, mask=exists, other=0.0).to(tl.float32) * LOG2_E
    total = tl.full(top.shape, 1.0, tl.float32)
    return top, total, tl.zeros((top.shape[0], CHANNELS), tl.float32)


@triton.jit
def joined(top, total, sums, other_top, other_total, other_sums):
    """Over the keys of both."""
    best = tl.maximum(top, other_top)
    kept, taken = tl.exp2(top - best), tl.exp2(other_top - best)
    # Explicit: where a compiler is free to fuse, it may do so in one kernel and not in another.
    total = tl.fma(total, kept, other_total * taken)
    sums = tl.fma(sums, kept[:, None], other_sums * taken[:, None])
    return best, total, sums


@triton.jit
def averaged(total, sums):
    """The rows' values; zeros of those that see no key."""
    return sums / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def first_key(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first that a query at this position sees."""
    first = position * 0
    if WINDOW is not None:
        first = tl.maximum(first, position - WINDOW + 1)
    if CHUNK is not None:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    return first
