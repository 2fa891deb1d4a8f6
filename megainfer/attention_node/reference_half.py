"""The attention node's half of a model in torch: the oracle, and the fallback."""

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from megainfer.attention_node.batch import StepBatch
from megainfer.attention_node.half import HalfSource, Routed
from megainfer.checkpoint.reader import WeightReader
from megainfer.kernels import reference as kernels
from megainfer.kernels.drawing import TokenKernels
from megainfer.models.source import Pieces
from megainfer.models.sources import AttentionSources, FfnSources, ModelSources
from megainfer.models.spec import AttentionSpec, DenseSpec, ModelSpec, MoESpec, QkNorm


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

    def forward(self, x: Tensor) -> Routed:
        """What the experts see, [T, D], and which rows of it go to each expert node."""
        hidden = kernels.rms_norm(x, self._norm, self._eps)
        weights, ids = kernels.route(linear(hidden, self._router), self._spec)
        return Routed(hidden, kernels.scatter_plan(weights, ids, self._homes))


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


class ReferenceLayer:
    """`half.LayerHalf`: attention, and either a dense network or a gate."""

    def __init__(self, source: HalfSource, layer: int, rotary: Tensor) -> None:
        spec, reader, dtype = source.spec, source.reader, source.dtype
        self._token_shapes = spec.layers[layer].attention.cache_shapes
        self._attention = Attention(AttentionSources(spec, layer), reader, rotary, dtype)
        ffn, sources = spec.layers[layer].ffn, FfnSources(spec, layer)
        self._dense = self._gate = None
        if isinstance(ffn, DenseSpec):
            self._dense = Dense(ffn, sources, reader, dtype)
        else:
            self._gate = Gate(ffn, sources, reader, source.homes, dtype)

    def cache_shapes(self, block_size: int) -> tuple[tuple[int, ...], ...]:
        """See `half.LayerHalf.cache_shapes`."""
        return tuple((block_size, *shape) for shape in self._token_shapes)

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        x += self._attention.forward(x, batch, caches)

    def feed_forward(self, x: Tensor) -> Routed | None:
        """See `half.LayerHalf.feed_forward`."""
        if self._dense is not None:
            x += self._dense.forward(x)
        return None if self._gate is None else self._gate.forward(x)

    def shared(self, hidden: Tensor) -> Tensor | None:
        """See `half.LayerHalf.shared`."""
        if self._gate is None or self._gate.shared is None:
            return None
        return self._gate.shared.forward(hidden)


class ReferenceHalf:
    """`half.ModelHalf` that computes in the instance's dtype."""

    def __init__(self, source: HalfSource) -> None:
        spec, reader, dtype = source.spec, source.reader, source.dtype
        sources = ModelSources(spec)
        self._eps = spec.norm_eps
        self._embedding = reader.load(sources.embedding(), dtype)
        self._final_norm = reader.load(sources.final_norm(), dtype)
        head = sources.lm_head()
        self._lm_head = reader.load(head, dtype) if head else self._embedding
        rotary = rotary_tables(spec, source.max_positions, dtype)
        self.layers = [
            ReferenceLayer(source, index, rotary[layer.attention])
            for index, layer in enumerate(spec.layers)
        ]

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `half.ModelHalf.embed`."""
        return embedding(token_ids, self._embedding)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `half.ModelHalf.logits`."""
        hidden = kernels.rms_norm(x[rows], self._final_norm, self._eps)
        return linear(hidden, self._lm_head).to(torch.float32)

    @property
    def tokens(self) -> TokenKernels:
        """See `half.ModelHalf.tokens`."""
        return kernels


def rotary_tables(
    spec: ModelSpec, max_positions: int, dtype: torch.dtype
) -> dict[AttentionSpec, Tensor]:
    """One table for each kind of attention in the model."""
    kinds = {layer.attention for layer in spec.layers}
    return {
        kind: kernels.rotary_table(kind.rope.theta, kind.head_dim, max_positions, dtype)
        for kind in kinds
    }


def _optional(reader: WeightReader, pieces: Pieces, dtype: torch.dtype) -> Tensor | None:
    return reader.load(pieces, dtype) if pieces else None
