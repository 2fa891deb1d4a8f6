"""What tokens leave of latent attention, in one launch behind the projection to all latents."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.gpu.kernels.attention.rotary import rotated
from megainfer.compute.gpu.launching import launch
from megainfer.compute.gpu.sizes import power_of_two
from megainfer.device import Device
from megainfer.models.spec import MlaSpec


class LatentFactors(NamedTuple):
    """What latents and keys are multiplied with, in their dtype.

    kv_norm: [R]. rotary: [positions, 2, r], as `compute.rotary` makes it. q_norm: [q rank], None
    where queries have no latent. index_norm, index_bias: [index dim], of an indexer's keys.
    """

    kv_norm: Tensor
    rotary: Tensor
    q_norm: Tensor | None
    index_norm: Tensor | None
    index_bias: Tensor | None


@triton.jit
def _keep_latent(
    x_ptr, weight_ptr, out_ptr, exists, eps, SIZE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The norm of a row, stored where it `exists`."""
    i = tl.arange(0, TILE)
    x = tl.load(x_ptr + i, mask=i < SIZE, other=0.0)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    weight = tl.load(weight_ptr + i, mask=i < SIZE, other=0.0)
    # Rounded before it is scaled, as in transformers.
    tl.store(out_ptr + i, (wide * scale).to(x.dtype) * weight, mask=(i < SIZE) & exists)


@triton.jit
def _centred(x_ptr, weight_ptr, bias_ptr, at, exists, mean, scale):
    """Channels `at` of a row, layer-normalised."""
    x = tl.load(x_ptr + at, mask=exists, other=0.0)
    weight = tl.load(weight_ptr + at, mask=exists, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + at, mask=exists, other=0.0).to(tl.float32)
    return ((x.to(tl.float32) - mean) * scale * weight + bias).to(x.dtype)


@triton.jit
def _keep_index_key(
    x_ptr, weight_ptr, bias_ptr, factors_ptr, out_ptr, exists, eps,
    SIZE: tl.constexpr, ROTATED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The layer norm of a row, its first channels then rotated, stored where it `exists`."""
    i = tl.arange(0, TILE)
    x = tl.load(x_ptr + i, mask=i < SIZE, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / SIZE
    off = tl.where(i < SIZE, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(off * off, 0) / SIZE + eps)
    turned, partner = i < ROTATED, (i + ROTATED // 2) % ROTATED
    key = _centred(x_ptr, weight_ptr, bias_ptr, i, i < SIZE, mean, scale)
    swapped = _centred(x_ptr, weight_ptr, bias_ptr, partner, turned, mean, scale)
    cos = tl.load(factors_ptr + i, mask=turned, other=0.0)
    signed_sin = tl.load(factors_ptr + ROTATED + i, mask=turned, other=0.0)
    key = tl.where(turned, key * cos + swapped * signed_sin, key)
    tl.store(out_ptr + i, key, mask=(i < SIZE) & exists)


@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "kept_ptr"])
def _keep(
    down_ptr, positions_ptr, kept_ptr, rotary_ptr, kv_weight_ptr, q_weight_ptr,
    index_weight_ptr, index_bias_ptr, q_ptr, cache_ptr, index_cache_ptr, eps, index_eps,
    RANK: tl.constexpr, ROPE: tl.constexpr, Q_RANK: tl.constexpr, INDEX: tl.constexpr,
    RANKS: tl.constexpr, ROPES: tl.constexpr, Q_RANKS: tl.constexpr, INDEXES: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    down_ptr += row * (RANK + ROPE + Q_RANK + INDEX)
    kept = tl.load(kept_ptr + row)
    factors_ptr = rotary_ptr + tl.maximum(tl.load(positions_ptr + row), 0) * (2 * ROPE)
    if part == 0:
        out_ptr = cache_ptr + kept * (RANK + ROPE)
        _keep_latent(down_ptr, kv_weight_ptr, out_ptr, kept >= 0, eps, RANK, RANKS)
        i = tl.arange(0, ROPES)
        key = rotated(down_ptr + RANK, factors_ptr, i, i < ROPE, ROPE)
        tl.store(out_ptr + RANK + i, key, mask=(i < ROPE) & (kept >= 0))
    elif part == 1:
        q_latent_ptr = q_ptr + row * Q_RANK
        _keep_latent(
            down_ptr + RANK + ROPE, q_weight_ptr, q_latent_ptr, row >= 0, eps, Q_RANK, Q_RANKS
        )
    else:
        _keep_index_key(
            down_ptr + RANK + ROPE + Q_RANK, index_weight_ptr, index_bias_ptr, factors_ptr,
            index_cache_ptr + kept * INDEX, kept >= 0, index_eps, INDEX, ROPE, INDEXES,
        )  # fmt: skip


def keep_latents(
    device: Device,
    down: Tensor,
    spec: MlaSpec,
    factors: LatentFactors,
    batch: StepBatch,
    caches: tuple[Tensor, ...],
) -> Tensor:
    """Latents and keys of tokens go where the batch says into the caches; those of a row whose
    `kept_at` is below 0, nowhere. The queries' latent is given back, [T, q rank].

    down: [T, R + r + q rank + index dim], what is projected of tokens; without a latent of queries
    and without an indexer those parts have no channels. caches: [N, B, R + r], latents, normed, and
    rotated keys; of an indexer [N, B, index dim], its keys, layer-normed and rotated.
    """
    index, q_rank = spec.indexer, spec.q_lora_rank or 0
    q = device.empty((len(down), q_rank), down.dtype)
    # Parts that aren't there get no program, but need an argument.
    q_norm, index_norm, index_bias = (
        down if factor is None else factor
        for factor in (factors.q_norm, factors.index_norm, factors.index_bias)
    )
    index_dim = index.head_dim if index else 0
    launch(
        device, _keep, (len(down), 1 + (q_rank > 0) + (index is not None)),
        down, batch.positions, batch.kept_at, factors.rotary, factors.kv_norm, q_norm,
        index_norm, index_bias, q, caches[0], caches[-1],
        spec.latent_eps, index.eps if index else 0.0,
        RANK=spec.kv_lora_rank, ROPE=spec.rope_dim, Q_RANK=q_rank, INDEX=index_dim,
        RANKS=power_of_two(spec.kv_lora_rank),
        ROPES=power_of_two(spec.rope_dim), Q_RANKS=power_of_two(max(q_rank, 1)),
        INDEXES=power_of_two(max(index_dim, 1)),
        writes=(q, *caches),
    )  # fmt: skip
    return q
