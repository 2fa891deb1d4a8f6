"""One layer's attention as the C++ kernels take it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.packed import PackedLinear, PackedNorm, address, optional_address
from megainfer.errors import ConfigError
from megainfer.models.spec import AttentionSpec, CacheFormat, MlaSpec, QkNorm

ROW_TYPES = {torch.float32: 0, torch.bfloat16: 1}
CACHE_TYPES = {**ROW_TYPES, torch.int8: 2, torch.float8_e4m3fn: 3}
"""`CacheType` of level.h."""
SCALE_BYTES = 2
"""Of eight bits: of a token's key or value of a head, or of a group of its latent's channels."""

BLOCK_TOKENS = 16
"""Of a block of the KV cache: `cache_block_tokens` of level.h."""


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """qkv: queries, keys, values, then the output's gate where there is one, each head by head.
    q_norm, k_norm: where the spec has them, ones where it says `UNIT`. rotary: float32 [positions,
    2, channels]; None where positions don't enter. sinks: float32 [H].
    """

    qkv: PackedLinear
    out: PackedLinear
    norm: PackedNorm
    q_norm: PackedNorm | None = None
    k_norm: PackedNorm | None = None
    rotary: Tensor | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """One layer's attention; `kept` is what `native` points into."""

    native: library.AttentionLayer
    kept: AttentionWeights


def block_shape(kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Of a block of one layer's KV cache: for each head values, then keys, as paged_cache.inl says;
    of codes of eight bits their scales, too.

    Raises ConfigError for a head_dim whose channels fill no words.
    """
    if head_dim % 2:
        raise ConfigError(f"heads have {head_dim} channels; the CPU kernels need an even number")
    if not has_scales(dtype):
        return (kv_heads, 2, BLOCK_TOKENS * head_dim)
    if head_dim % 4:
        raise ConfigError(
            f"heads have {head_dim} channels; a KV cache of eight bits needs a multiple of 4"
        )
    return (kv_heads, 2 * BLOCK_TOKENS * (head_dim + SCALE_BYTES))


def latent_block_shape(spec: MlaSpec, dtype: torch.dtype) -> tuple[int, ...]:
    """Of a block of one layer's latents: a row a token, and of codes of eight bits their scales."""
    if not has_scales(dtype):
        return (BLOCK_TOKENS, spec.latent_dim)
    return (BLOCK_TOKENS * spec.cached_bytes(CacheFormat(1, SCALE_BYTES)),)


def has_scales(dtype: torch.dtype) -> bool:
    """Whether keys and values of this dtype are codes of eight bits."""
    return dtype not in ROW_TYPES


def gate_last(spec: AttentionSpec) -> Tensor:
    """The order of `AttentionSources.qkv`'s rows in which the kernels want them: int64.

    On disk each head's query stands before its gate; here all gates come last.
    """
    rows, d = torch.arange(sum(spec.qkv_sizes)), spec.head_dim
    queries, gates = rows[: 2 * spec.q_size].view(-1, 2, d).unbind(1)
    return torch.cat((queries.flatten(), rows[2 * spec.q_size :], gates.flatten()))


def pack_attention(
    weights: AttentionWeights, spec: AttentionSpec, residual: float = 1.0
) -> PackedAttention:
    """residual: what the layer's output is multiplied with before it is added."""
    temperature = spec.temperature
    native = library.AttentionLayer(
        weights.qkv.native,
        weights.out.native,
        weights.norm.native,
        _native_norm(weights.q_norm),
        _native_norm(weights.k_norm),
        optional_address(weights.rotary),
        optional_address(weights.sinks),
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.rotary_dim,
        spec.window or 0,
        spec.chunk or 0,
        spec.clip_qkv or 0.0,
        spec.score_scale,
        residual,
        1.0 if temperature is None else temperature.floor,
        0.0 if temperature is None else temperature.scale,
        spec.qk_norm is not QkNorm.FULL,
        spec.norm_after_rope,
        spec.rope is not None and spec.rope.interleaved,
        spec.gated,
    )
    return PackedAttention(native, weights)


def _native_norm(norm: PackedNorm | None) -> library.Norm:
    return library.Norm() if norm is None else norm.native


def layer_cache(layer: PackedAttention, cache: Tensor) -> library.LayerCache:
    """The address of a layer's cache, see `AttentionKernel.attend`."""
    native = layer.native
    assert cache.shape[1:] == block_shape(native.kv_heads, native.head_dim, cache.dtype)
    return library.LayerCache(address(cache), CACHE_TYPES[cache.dtype])
