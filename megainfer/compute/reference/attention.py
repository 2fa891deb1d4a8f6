"""Softmax attention with grouped heads in torch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.reference.norm import Norm
from megainfer.models.sources import AttentionSources, Pieces
from megainfer.models.spec import AttentionSpec, QkNorm, QueryTemperature


class Projected(NamedTuple):
    """Of T rows: queries [T, H, d], keys and values [T, Hkv, d], the output's gate [T, H * d]."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None


class Attention:
    """Softmax attention with grouped heads over the paged cache, its input norm included."""

    def __init__(
        self,
        sources: AttentionSources,
        reader: WeightReader,
        rotary: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        spec = self._spec = sources.attention
        self._rotary = rotary
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._qkv = reader.load(sources.qkv(), dtype)
        self._qkv_bias = _optional(reader, sources.qkv_bias(), dtype)
        self._out = reader.load(sources.out(), dtype)
        self._out_bias = _optional(reader, sources.out_bias(), dtype)
        self._qk_norm = _QkNorm(sources, reader, dtype)
        sinks = _optional(reader, sources.sinks(), dtype)
        self._scoring = kernels.Scoring(spec.scale, sinks, spec.window, spec.chunk)

    def forward(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """What is added to x [T, D]; the keys and values of x's tokens go into the cache."""
        projected = self.project(x, batch.positions)
        k_cache, v_cache = caches
        kernels.write_cache(k_cache, projected.k.to(k_cache.dtype), batch.kept_at)
        kernels.write_cache(v_cache, projected.v.to(v_cache.dtype), batch.kept_at)
        return self.attend(projected, batch, caches)

    def project(self, x: Tensor, positions: Tensor) -> Projected:
        """What of x [T, D] at these positions (int64 [T]) attention takes."""
        spec, gate = self._spec, None
        both = linear(self._norm(x), self._qkv, self._qkv_bias)
        q, k, v = both.split_with_sizes(list(spec.qkv_sizes), dim=-1)
        if spec.gated:
            q, gate = (part.flatten(1) for part in q.view(len(x), -1, 2, spec.head_dim).unbind(2))
        if spec.qk_norm is QkNorm.FULL:
            q, k = self._qk_norm(q, k)
        if spec.clip_qkv is not None:
            q, k, v = (part.clamp(-spec.clip_qkv, spec.clip_qkv) for part in (q, k, v))
        q, k, v = (_heads(part, spec) for part in (q, k, v))
        return Projected(*self._place(q, k, positions), v, gate)

    def attend(self, projected: Projected, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """Attention over the caches, which have the rows' own keys and values: [T, D]."""
        k_cache, v_cache = caches
        attended = _attend(projected.q, k_cache, v_cache, batch, self._scoring)
        if projected.gate is not None:
            attended = attended * torch.sigmoid(projected.gate)
        return linear(attended, self._out, self._out_bias)

    def _place(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """All that depends on positions, and the norms of each head around it."""
        spec, each_head = self._spec, self._spec.qk_norm in (QkNorm.HEAD, QkNorm.UNIT)
        if each_head and not spec.norm_after_rope:
            q, k = self._qk_norm(q, k)
        if self._rotary is not None:
            factors = self._rotary[positions]
            pairs = spec.rope is not None and spec.rope.interleaved
            q, k = kernels.rotate(q, factors, pairs), kernels.rotate(k, factors, pairs)
        if each_head and spec.norm_after_rope:
            q, k = self._qk_norm(q, k)
        if spec.temperature is not None:
            q = (q * _temperature(spec.temperature, positions)[:, None, None]).to(q.dtype)
        return q, k


class _QkNorm:
    """The norms of queries and of keys, whatever they go over."""

    def __init__(self, sources: AttentionSources, reader: WeightReader, dtype: torch.dtype) -> None:
        self._eps = sources.spec.norm.eps
        offset = 1 if sources.spec.norm.unit_offset else 0
        weights = (_optional(reader, part, dtype) for part in (sources.q_norm(), sources.k_norm()))
        # A scalar joins tensors of any device.
        self._q, self._k = (
            torch.ones((), dtype=dtype) if weight is None else weight + offset for weight in weights
        )

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q = kernels.rms_norm(q, self._q, self._eps)
        return q, kernels.rms_norm(k, self._k, self._eps)


def _heads(rows: Tensor, spec: AttentionSpec) -> Tensor:
    return rows.view(len(rows), -1, spec.head_dim)


def _temperature(temperature: QueryTemperature, positions: Tensor) -> Tensor:
    """float32 [T], what queries at these positions are multiplied with."""
    steps = torch.floor((positions.to(torch.float32) + 1) / temperature.floor)
    return 1 + temperature.scale * torch.log1p(steps)


def _attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: StepBatch, scoring: kernels.Scoring
) -> Tensor:
    """Attention of all rows, [T, H * d]: the decodes together, each prefill by itself."""
    caches, results = (k_cache, v_cache), []
    if batch.decodes is not None:
        table, mask = batch.decodes.block_table, batch.decodes.mask
        results.append(kernels.decode_attention(q[: len(table)], *caches, table, mask, scoring))
    for part in batch.prefills:
        rows = q[part.start : part.stop]
        results.append(kernels.prefill_attention(rows, *caches, part.blocks, part.context, scoring))
    return results[0] if len(results) == 1 else torch.cat(results)


def _optional(reader: WeightReader, pieces: Pieces, dtype: torch.dtype) -> Tensor | None:
    return reader.load(pieces, dtype) if pieces else None
