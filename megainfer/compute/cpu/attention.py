"""One layer's attention, loaded for the C++ kernels."""

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels.attention_layer import (
    AttentionWeights,
    PackedAttention,
    gate_last,
    pack_attention,
)
from megainfer.compute.cpu.kernels.packed import PackedNorm, pack_norm
from megainfer.compute.cpu.loader import Loader
from megainfer.models.sources import AttentionSources, Pieces
from megainfer.models.spec import NormSpec, QkNorm


def load_attention(
    sources: AttentionSources, loader: Loader, rotary: Tensor | None
) -> PackedAttention:
    """rotary: the table of its rotation; None where positions don't enter."""
    spec = sources.attention
    weights = AttentionWeights(
        qkv=loader.linear(
            sources.qkv(), sources.qkv_bias(), gate_last(spec) if spec.gated else None
        ),
        out=loader.linear(sources.out(), sources.out_bias()),
        norm=loader.norm(sources.norm(), sources.norm_bias()),
        q_norm=_qk_norm(sources, loader, sources.q_norm()),
        k_norm=_qk_norm(sources, loader, sources.k_norm()),
        rotary=rotary,
        sinks=loader.maybe_vector(sources.sinks()),
    )
    return pack_attention(weights, spec, sources.spec.multipliers.residual)


def _qk_norm(sources: AttentionSources, loader: Loader, weight: Pieces) -> PackedNorm | None:
    """Of queries or keys: root mean square, whatever the residual stream's is."""
    spec, norm = sources.attention, sources.spec.norm
    if spec.qk_norm is QkNorm.NONE:
        return None
    if spec.qk_norm is QkNorm.UNIT:
        return pack_norm(torch.ones(spec.head_dim), NormSpec(norm.eps))
    return pack_norm(loader.vector(weight) + (1.0 if norm.unit_offset else 0.0), NormSpec(norm.eps))
