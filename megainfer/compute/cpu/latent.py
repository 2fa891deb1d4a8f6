"""Multi-head latent attention of a half in C++."""

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.cpu.kernels.attention import step_rows
from megainfer.compute.cpu.kernels.attention_layer import (
    BLOCK_TOKENS,
    has_scales,
    latent_block_shape,
)
from megainfer.compute.cpu.kernels.latent import LatentWeights, pack_latent
from megainfer.compute.cpu.loader import Loader
from megainfer.compute.latent_weights import rotated_apart, up_by_head
from megainfer.compute.reference import latent as reference_latent
from megainfer.errors import ConfigError
from megainfer.models.sources import LatentSources


class LatentAttention:
    """Latent attention over packed weights, from the input's norm to the residual stream."""

    state_shapes: tuple[tuple[int, ...], ...] = ()

    def __init__(self, sources: LatentSources, loader: Loader, rotary: Tensor) -> None:
        spec = sources.spec
        self._spec = sources.attention
        self._kernel = loader.latent_kernel
        self._packed = pack_latent(
            _weights(sources, loader, rotary),
            sources.attention,
            eps=spec.norm.eps,
            residual=spec.multipliers.residual,
        )

    def block_shapes(self, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """Of the tensors of this dtype that a block of tokens is kept in."""
        return (latent_block_shape(self._spec, dtype),)

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        (cache,) = caches
        step = step_rows(batch)
        self._kernel.attend(self._packed, step, cache, x)


class SparseLatentAttention:
    """Latent attention whose indexer chooses positions: by the reference, in the instance's dtype,
    so that its weights take what any others do."""

    state_shapes: tuple[tuple[int, ...], ...] = ()

    def __init__(self, sources: LatentSources, loader: Loader, rotary: Tensor) -> None:
        self._spec = sources.attention
        self._residual = sources.spec.multipliers.residual
        self._dtype = loader.source.dtype
        self._attention = reference_latent.LatentAttention(
            sources, loader.source.reader, rotary.to(self._dtype), self._dtype
        )

    def block_shapes(self, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """Of the tensors of this dtype that a block of tokens is kept in. Raises ConfigError for
        codes of eight bits."""
        if has_scales(dtype):
            raise ConfigError(f"no KV cache of eight bits: {self._spec.check_codes()}")
        return tuple((BLOCK_TOKENS, *shape) for shape in self._spec.cache_shapes)

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        found = self._attention.forward(x.to(self._dtype), batch, caches)
        x.add_(found, alpha=self._residual)


def load_latent(
    sources: LatentSources, loader: Loader, rotary: Tensor
) -> LatentAttention | SparseLatentAttention:
    """Of this layer, as its spec asks."""
    if sources.attention.indexer is None:
        return LatentAttention(sources, loader, rotary)
    return SparseLatentAttention(sources, loader, rotary)


def _weights(sources: LatentSources, loader: Loader, rotary: Tensor) -> LatentWeights:
    spec, kernel, dtype = sources.attention, loader.kernel, loader.weight_dtype
    key_up, value_up = up_by_head(spec, loader.matrix(sources.kv_up()))
    q_down, bias = sources.q_down(), loader.maybe_vector(sources.kv_down_bias())
    return LatentWeights(
        q_down=loader.linear(q_down, sources.q_down_bias()) if q_down else None,
        q=kernel.pack(rotated_apart(spec, loader.matrix(sources.q()), spec.qk_dim), dtype),
        kv_down=kernel.pack(
            rotated_apart(spec, loader.matrix(sources.kv_down()), spec.latent_dim),
            dtype,
            None if bias is None else rotated_apart(spec, bias, spec.latent_dim),
        ),
        out=loader.linear(sources.out(), sources.out_bias()),
        key_up=loader.latent_kernel.pack_heads([*key_up.mT], dtype),
        value_up=loader.latent_kernel.pack_heads([*value_up], dtype),
        norm=loader.vector(sources.norm()),
        q_norm=loader.maybe_vector(sources.q_latent_norm()),
        kv_norm=loader.vector(sources.kv_latent_norm()),
        rotary=rotary,
    )
