"""The halves of a layer that an attention node computes: attention, gate, shared expert, dense."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.attention_node.batch import StepBatch
from megainfer.kernels import reference as kernels
from megainfer.m2n.mailbox import Part
from megainfer.models.sources import AttentionSources, FfnSources, Pieces
from megainfer.models.spec import DenseSpec, ModelSpec, MoESpec, QkNorm
from megainfer.weights import WeightReader


class Attention:
    """Softmax attention with grouped heads over the paged cache, its input norm included."""

    def __init__(
        self, sources: AttentionSources, reader: WeightReader, rotary: Tensor, dtype: torch.dtype
    ) -> None:
        self._spec = sources.attention
        self._eps = sources.spec.norm_eps
        self._rotary = rotary
        self._norm = reader.load(sources.norm(), dtype)
        self._qkv = reader.load(sources.qkv(), dtype)
        self._qkv_bias = _optional(reader, sources.qkv_bias(), dtype)
        self._out = reader.load(sources.out(), dtype)
        self._out_bias = _optional(reader, sources.out_bias(), dtype)
        self._q_norm = _optional(reader, sources.q_norm(), dtype)
        self._k_norm = _optional(reader, sources.k_norm(), dtype)

    def forward(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """What is added to x [T, D]; the keys and values of x's tokens go into the cache."""
        q, k, v = self._project(kernels.rms_norm(x, self._norm, self._eps))
        factors = self._rotary[batch.positions]
        q, k = kernels.rotate(q, factors), kernels.rotate(k, factors)
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


class Dense:
    """A whole feed-forward half without experts, its input norm included."""

    def __init__(
        self, spec: DenseSpec, sources: FfnSources, reader: WeightReader, dtype: torch.dtype
    ) -> None:
        self._eps = sources.spec.norm_eps
        self._norm = reader.load(sources.norm(), dtype)
        self._gate_up = reader.load(sources.dense_gate_up(spec), dtype)
        self._down = reader.load(sources.dense_down(spec), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to x [T, D]."""
        hidden = kernels.rms_norm(x, self._norm, self._eps)
        return kernels.feed_forward(hidden, self._gate_up, self._down)


class Gate:
    """Where a MoE layer's feed-forward half leaves the attention node: norm, router, plan."""

    def __init__(
        self,
        spec: MoESpec,
        sources: FfnSources,
        reader: WeightReader,
        homes: kernels.Homes,
        dtype: torch.dtype,
    ) -> None:
        self._spec = spec.router
        self._eps = sources.spec.norm_eps
        self._homes = homes
        self._norm = reader.load(sources.norm(), dtype)
        self._router = reader.load(sources.router(spec), dtype)
        self.shared = SharedExpert(spec, sources, reader, dtype) if spec.shared else None

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Part, ...]]:
        """What the experts see, [T, D], and which rows of it go to each expert node."""
        hidden = kernels.rms_norm(x, self._norm, self._eps)
        weights, ids = kernels.route(linear(hidden, self._router), self._spec)
        return hidden, kernels.scatter_plan(weights, ids, self._homes)


class SharedExpert:
    """The expert that every token visits, scaled by a sigmoid gate."""

    def __init__(
        self, spec: MoESpec, sources: FfnSources, reader: WeightReader, dtype: torch.dtype
    ) -> None:
        self._gate_up = reader.load(sources.shared_gate_up(spec), dtype)
        self._down = reader.load(sources.shared_down(spec), dtype)
        self._gate = reader.load(sources.shared_gate(spec), dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, D] -> [T, D]."""
        output = kernels.feed_forward(hidden, self._gate_up, self._down)
        return torch.sigmoid(linear(hidden, self._gate)) * output


class Layer:
    """One layer's attention-side halves: attention, and either `dense` or `gate`."""

    def __init__(
        self,
        spec: ModelSpec,
        layer: int,
        reader: WeightReader,
        homes: kernels.Homes,
        rotary: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.attention = Attention(AttentionSources(spec, layer), reader, rotary, dtype)
        ffn, sources = spec.layers[layer].ffn, FfnSources(spec, layer)
        self.dense = self.gate = None
        if isinstance(ffn, DenseSpec):
            self.dense = Dense(ffn, sources, reader, dtype)
        else:
            self.gate = Gate(ffn, sources, reader, homes, dtype)


def _optional(reader: WeightReader, pieces: Pieces, dtype: torch.dtype) -> Tensor | None:
    return reader.load(pieces, dtype) if pieces else None
