"""The sparse indexer of latent attention on a GPU."""

import torch
from torch import Tensor

from megainfer.compute.contexts import Span
from megainfer.compute.gpu.kernels.attention.indexer import IndexQueries, choose_positions
from megainfer.compute.gpu.products import Products
from megainfer.compute.half import HalfSource
from megainfer.compute.latent_weights import halves_apart
from megainfer.models.sources import IndexerSources


class Indexer:
    """Which positions queries attend to.

    key: [d, D], what keys are projected with; norm, bias: [d], of their layer norm. Keys stand in
    the order that half-split rotation wants.
    """

    def __init__(self, sources: IndexerSources, source: HalfSource, products: Products) -> None:
        self._products = products
        self._spec = spec = sources.indexer
        reader, dtype, self._device = source.reader, source.dtype, source.device
        rotated = sources.rotated

        def apart(rows: Tensor) -> Tensor:
            return halves_apart(rows, spec.head_dim, 0, rotated) if spec.interleaved else rows

        self.key = apart(reader.load(sources.k(), dtype))
        self.norm = apart(reader.load(sources.k_norm(), dtype))
        self.bias = apart(reader.load(sources.k_norm_bias(), dtype))
        self._q = apart(reader.load(sources.q(), dtype))
        # In float32 whatever the instance's dtype, as in transformers: it decides, not computes.
        self._weights = reader.load(sources.weights(), torch.float32)

    def ask(
        self, hidden: Tensor, latent: Tensor, rotary: Tensor, positions: Tensor
    ) -> IndexQueries:
        """The questions of these rows, [T, D]; latent: the attention's query latent."""
        q = self._products.linear(latent, self._q).view(
            len(latent), self._spec.num_heads, self._spec.head_dim
        )
        weights = self._products.linear(hidden.to(torch.float32), self._weights)
        return IndexQueries(q, weights, rotary, positions)

    def choose(self, queries: IndexQueries, cache: Tensor, span: Span) -> Tensor | None:
        """See `choose_positions`; None where no row sees more than are kept."""
        if span.context <= self._spec.top_k:
            return None
        return choose_positions(self._device, queries, cache, span, self._spec.top_k)
