"""What lies between the projection of queries, keys and values and attention, in one launch."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import power_of_two
from megainfer.device import Device
from megainfer.models.spec import AttentionSpec, QkNorm

_TILE = 1024
"""Channels that a program takes, where no norm goes over more."""


class HeadFactors(NamedTuple):
    """What queries and keys are multiplied with, in their dtype.

    q_norm, k_norm: of `QkNorm.HEAD` [d], of `QkNorm.FULL` as long as the projection, an offset
    added; else None. rotary: as `compute.rotary` makes it; None where positions don't enter.
    """

    q_norm: Tensor | None
    k_norm: Tensor | None
    rotary: Tensor | None


@triton.jit
def _clipped(x, CLIP: tl.constexpr):
    if CLIP is not None:
        wide = x.to(tl.float32)
        # By comparisons, which leave NaN as it is.
        x = tl.where(wide > CLIP, CLIP, tl.where(wide < -CLIP, -CLIP, wide)).to(x.dtype)
    return x


@triton.jit
def _scale_of(x, eps, SIZE: tl.constexpr, FULL: tl.constexpr):
    """1 / root mean square of each head [heads, 1], or of all of them."""
    wide = x.to(tl.float32)
    squares = tl.sum(wide * wide, 1)[:, None]
    if FULL:
        squares = tl.sum(squares, 0, keep_dims=True)
    return tl.rsqrt(squares / SIZE + eps)


@triton.jit
def _normed(x, scale, weight_ptr, at, exists, WEIGHT: tl.constexpr):
    # Rounded before it is weighted, as in transformers.
    x = (x.to(tl.float32) * scale).to(x.dtype)
    if WEIGHT:
        x *= tl.load(weight_ptr + at, mask=exists, other=0.0)
    return x


@triton.jit
def _ready(
    source_ptr, weight_ptr, heads, channels, exists, scale,
    STRIDE: tl.constexpr, WEIGHT_STRIDE: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr,
    CLIP: tl.constexpr,
):  # fmt: skip
    """Channels [heads, channels] of a row as they are rotated; scale: of the norm before that."""
    x = tl.load(source_ptr + heads * STRIDE + channels, mask=exists, other=0.0)
    at = heads * WEIGHT_STRIDE + channels
    if NORM == "full":
        return _clipped(_normed(x, scale, weight_ptr, at, exists, WEIGHT), CLIP)
    x = _clipped(x, CLIP)
    if NORM != "none":
        x = _normed(x, scale, weight_ptr, at, exists, WEIGHT)
    return x


@triton.jit
def _placed(
    source_ptr, weight_ptr, factors_ptr, heads, channels, exists, eps,
    HEADS: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr,
    AFTER: tl.constexpr, WEIGHT: tl.constexpr, CLIP: tl.constexpr, ROTATED: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """A row's heads [heads, channels], normed, clipped and rotated."""
    full: tl.constexpr = NORM == "full"
    before: tl.constexpr = "none" if AFTER else NORM
    weight_stride: tl.constexpr = D if full else 0
    size: tl.constexpr = HEADS * D if full else D
    scale = 1.0
    if before != "none":
        raw = tl.load(source_ptr + heads * STRIDE + channels, mask=exists, other=0.0)
        scale = _scale_of(raw if full else _clipped(raw, CLIP), eps, size, full)
    x = _ready(
        source_ptr, weight_ptr, heads, channels, exists, scale,
        STRIDE, weight_stride, before, WEIGHT, CLIP,
    )  # fmt: skip
    if ROTATED > 0:
        turned = channels < ROTATED
        swapped = channels ^ 1 if PAIRS else (channels + ROTATED // 2) % ROTATED
        partner = _ready(
            source_ptr, weight_ptr, heads, swapped, exists & turned, scale,
            STRIDE, weight_stride, before, WEIGHT, CLIP,
        )  # fmt: skip
        cos = tl.load(factors_ptr + channels, mask=turned, other=0.0)
        signed_sin = tl.load(factors_ptr + ROTATED + channels, mask=turned, other=0.0)
        x = tl.where(turned, x * cos + partner * signed_sin, x)
    if AFTER:
        scale = _scale_of(x, eps, size, full)
        x = _normed(x, scale, weight_ptr, heads * weight_stride + channels, exists, WEIGHT)
    return x


@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "kept_ptr"])
def _place_heads(
    qkv_ptr, positions_ptr, kept_ptr, q_weight_ptr, k_weight_ptr, rotary_ptr,
    q_ptr, k_cache_ptr, v_cache_ptr, eps, floor, growth,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
    AFTER: tl.constexpr, WEIGHT: tl.constexpr, CLIP: tl.constexpr, ROTATED: tl.constexpr,
    PAIRS: tl.constexpr, TEMPERATURE: tl.constexpr,
    Q_TILE: tl.constexpr, KV_TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_stride: tl.constexpr = 2 * D if GATED else D
    q_groups: tl.constexpr = (H + Q_TILE - 1) // Q_TILE
    kv_groups: tl.constexpr = (HKV + KV_TILE - 1) // KV_TILE
    channels = tl.arange(0, CHANNELS)[None, :]
    position = tl.maximum(tl.load(positions_ptr + row), 0)
    factors_ptr = rotary_ptr + position * (2 * ROTATED)
    source_ptr = qkv_ptr + row * (H * q_stride + 2 * HKV * D)
    if group < q_groups:
        q_heads = (group * Q_TILE + tl.arange(0, Q_TILE))[:, None]
        is_query = (q_heads < H) & (channels < D)
        q = _placed(
            source_ptr, q_weight_ptr, factors_ptr, q_heads, channels, is_query, eps,
            H, q_stride, D, NORM, AFTER, WEIGHT, CLIP, ROTATED, PAIRS,
        )  # fmt: skip
        if TEMPERATURE:
            steps = tl.floor(tl.div_rn((position + 1).to(tl.float32), floor))
            q = (q.to(tl.float32) * (1 + growth * tl.log(1 + steps))).to(q.dtype)
        tl.store(q_ptr + (row * H + q_heads) * D + channels, q, mask=is_query)
    else:
        part = group - q_groups
        heads = ((part % kv_groups) * KV_TILE + tl.arange(0, KV_TILE))[:, None]
        exists = (heads < HKV) & (channels < D)
        kept = tl.load(kept_ptr + row)
        at = (kept * HKV + heads) * D + channels
        keys_ptr = source_ptr + H * q_stride
        if part < kv_groups:
            k = _placed(
                keys_ptr, k_weight_ptr, factors_ptr, heads, channels, exists, eps,
                HKV, D, D, NORM, AFTER, WEIGHT, CLIP, ROTATED, PAIRS,
            )  # fmt: skip
            tl.store(k_cache_ptr + at, k, mask=exists & (kept >= 0))
        else:
            v = tl.load(keys_ptr + (HKV + heads) * D + channels, mask=exists, other=0.0)
            tl.store(v_cache_ptr + at, _clipped(v, CLIP), mask=exists & (kept >= 0))


def place_heads(
    device: Device,
    qkv: Tensor,
    spec: AttentionSpec,
    eps: float,
    factors: HeadFactors,
    batch: StepBatch,
    caches: tuple[Tensor, Tensor],
) -> Tensor:
    """Queries [T, H, d] of what is projected, qkv [T, q + k + v]: normed, clipped, rotated, scaled.

    Keys, treated likewise, and values go where the batch says into the caches [N, B, Hkv, d]; those
    of a row whose `kept_at` is below 0, nowhere. A gate stays in qkv. Everything has qkv's dtype,
    and is rounded where the reference rounds.
    """
    rows, channels = qkv.shape[0], power_of_two(spec.head_dim)
    q = device.empty((rows, spec.num_heads, spec.head_dim), qkv.dtype)
    q_tile, kv_tile = (_heads_at_once(spec, n) for n in (spec.num_heads, spec.num_kv_heads))
    groups = -(-spec.num_heads // q_tile) + 2 * -(-spec.num_kv_heads // kv_tile)
    normed, weighted = spec.qk_norm is not QkNorm.NONE, factors.q_norm is not None
    temperature = spec.temperature
    tensors = [qkv if factor is None else factor for factor in factors]
    launch(
        device, _place_heads, (rows, groups),
        qkv, batch.positions, batch.kept_at, *tensors, q, *caches, eps,
        float(temperature.floor) if temperature else 1.0,
        float(temperature.scale) if temperature else 0.0,
        H=spec.num_heads, HKV=spec.num_kv_heads, D=spec.head_dim, GATED=spec.gated,
        NORM=spec.qk_norm.value, AFTER=normed and spec.norm_after_rope, WEIGHT=weighted,
        CLIP=spec.clip_qkv, ROTATED=spec.rotary_dim, TEMPERATURE=temperature is not None,
        PAIRS=spec.rope is not None and spec.rope.interleaved,
        Q_TILE=q_tile, KV_TILE=kv_tile, CHANNELS=channels,
        writes=(q, *caches),
    )  # fmt: skip
    return q


def _heads_at_once(spec: AttentionSpec, heads: int) -> int:
    """A power of two."""
    every = power_of_two(heads)
    if spec.qk_norm is QkNorm.FULL:
        return every
    channels = power_of_two(spec.head_dim)
    return min(every, max(1, _TILE // channels))
