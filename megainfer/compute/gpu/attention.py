"""Softmax attention with grouped heads on a GPU."""

from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.gpu.kernels.attention.heads import HeadFactors, place_heads
from megainfer.compute.gpu.kernels.attention.paged import Queries, paged_attention
from megainfer.compute.gpu.norm import Norm
from megainfer.compute.gpu.output import Output
from megainfer.compute.gpu.products import Products
from megainfer.compute.half import HalfSource
from megainfer.compute.reference.kernels import Scoring
from megainfer.models.sources import AttentionSources, Pieces


class Attention:
    """Softmax attention with grouped heads over the paged cache, its input norm included."""

    def __init__(
        self,
        sources: AttentionSources,
        source: HalfSource,
        rotary: Tensor | None,
        products: Products,
    ) -> None:
        reader, dtype, spec = source.reader, source.dtype, sources.attention
        self._spec, self._device, self._products = spec, source.device, products
        self._eps, offset = sources.spec.norm.eps, 1 if sources.spec.norm.unit_offset else 0

        def head_norm(pieces: Pieces) -> Tensor | None:
            weight = reader.maybe_load(pieces, dtype)
            return None if weight is None else weight + offset

        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._qkv = reader.load(sources.qkv(), dtype)
        self._qkv_bias = reader.maybe_load(sources.qkv_bias(), dtype)
        self._factors = HeadFactors(
            head_norm(sources.q_norm()), head_norm(sources.k_norm()), rotary
        )
        sinks = reader.maybe_load(sources.sinks(), dtype)
        self._scoring = Scoring(spec.scale, sinks, spec.window, spec.chunk)
        residual = sources.spec.multipliers.residual
        self._out = Output(sources.out(), sources.out_bias(), reader, dtype, residual, products)

    def add(self, to: Tensor, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """To `to` [T, D], which may be x; the keys and values of x's tokens go into the cache."""
        k_cache, v_cache = caches
        both = (k_cache, v_cache)
        qkv = self._products.linear(self._norm(x), self._qkv, self._qkv_bias)
        q = place_heads(self._device, qkv, self._spec, self._eps, self._factors, batch, both)
        queries = Queries(q, batch.positions, qkv if self._spec.gated else None)
        attended = self._device.empty((len(x), self._spec.q_size), x.dtype)
        for span in batch.spans:
            paged_attention(
                self._device,
                queries,
                both,
                span,
                self._scoring,
                attended,
                self._products.invariant,
            )
        self._out.add(to, attended)
