"""Softmax attention with grouped heads in torch."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.attention_node.batch import StepBatch
from megainfer.attention_node.halves.reference_norm import Norm
from megainfer.checkpoint.reader import WeightReader
from megainfer.kernels import reference as kernels
from megainfer.models.sources import AttentionSources, Pieces
from megainfer.models.spec import QkNorm


class Attention:
    """Softmax attention with grouped heads over the paged cache, its input norm included."""

    def __init__(
        self,
        sources: AttentionSources,
        reader: WeightReader,
        rotary: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self._spec = sources.attention
        self._eps = sources.spec.norm.eps
        self._rotary = rotary
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._qkv = reader.load(sources.qkv(), dtype)
        self._qkv_bias = _optional(reader, sources.qkv_bias(), dtype)
        self._out = reader.load(sources.out(), dtype)
        self._out_bias = _optional(reader, sources.out_bias(), dtype)
        self._q_norm = _optional(reader, sources.q_norm(), dtype)
        self._k_norm = _optional(reader, sources.k_norm(), dtype)

    def forward(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """What is added to x [T, D]; the keys and values of x's tokens go into the cache."""
        q, k, v = self._project(self._norm(x))
        if self._rotary is not None:
            factors = self._rotary[batch.positions]
            pairs = self._spec.rope is not None and self._spec.rope.interleaved
            q, k = kernels.rotate(q, factors, pairs), kernels.rotate(k, factors, pairs)
        k_cache, v_cache = caches
        kernels.write_cache(k_cache, k, batch.slots)
        kernels.write_cache(v_cache, v, batch.slots)
        return linear(_attend(q, k_cache, v_cache, batch), self._out, self._out_bias)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, d], keys and values [T, Hkv, d], normalised and clipped."""
        spec = self._spec
        sizes = [spec.q_size, spec.kv_size, spec.kv_size]
        q, k, v = linear(x, self._qkv, self._qkv_bias).split_with_sizes(sizes, dim=-1)
        if spec.qk_norm is QkNorm.FULL:
            q, k = self._normalise(q, k)
        if spec.clip_qkv is not None:
            q, k, v = (part.clamp(-spec.clip_qkv, spec.clip_qkv) for part in (q, k, v))
        q, k, v = (part.view(len(x), -1, spec.head_dim) for part in (q, k, v))
        if spec.qk_norm is QkNorm.HEAD:
            q, k = self._normalise(q, k)
        return q, k, v

    def _normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        assert self._q_norm is not None
        assert self._k_norm is not None
        q = kernels.rms_norm(q, self._q_norm, self._eps)
        return q, kernels.rms_norm(k, self._k_norm, self._eps)


def _attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: StepBatch) -> Tensor:
    """Attention of all rows, [T, H * d]: the decodes together, each prefill by itself."""
    results = []
    if batch.decodes is not None:
        table, mask = batch.decodes.block_table, batch.decodes.mask
        results.append(kernels.decode_attention(q[: len(table)], k_cache, v_cache, table, mask))
    for part in batch.prefills:
        rows = q[part.start : part.stop]
        results.append(kernels.prefill_attention(rows, k_cache, v_cache, part.blocks, part.context))
    return results[0] if len(results) == 1 else torch.cat(results)


def _optional(reader: WeightReader, pieces: Pieces, dtype: torch.dtype) -> Tensor | None:
    return reader.load(pieces, dtype) if pieces else None
