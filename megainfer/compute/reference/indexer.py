"""The sparse indexer of latent attention in torch."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.latent_weights import halves_apart
from megainfer.compute.reference import kernels as kernels
from megainfer.models.sources import IndexerSources


class Asked:
    """What a step's rows ask the indexer's cache: queries [T, h, d], weights [T, h]."""

    def __init__(self, q: Tensor, weights: Tensor, cache: Tensor, top_k: int) -> None:
        self._q, self._weights, self._cache, self._top_k = q, weights, cache, top_k

    def chosen(self, rows: slice, table: Tensor, visible: Tensor) -> Tensor:
        """What these rows attend to of what they see: bool [S, T, L], like `visible`.

        table: int64 [S, blocks], where the sequences' tokens lie; the rows are T of each.
        """
        keys = kernels.gather_latents(self._cache, table, visible)
        size = visible.shape[:2]
        q = self._q[rows].view(*size, *self._q.shape[1:])
        weights = self._weights[rows].view(*size, -1)
        return kernels.choose_positions(q, weights, keys, visible, self._top_k)


class Indexer:
    """Keys go into a cache of their own; queries find the best of them."""

    def __init__(self, sources: IndexerSources, reader: WeightReader, dtype: torch.dtype) -> None:
        self._spec = spec = sources.indexer
        rotated = sources.rotated

        def apart(rows: Tensor) -> Tensor:
            return halves_apart(rows, spec.head_dim, 0, rotated) if spec.interleaved else rows

        self._q = apart(reader.load(sources.q(), dtype))
        self._k = apart(reader.load(sources.k(), dtype))
        self._k_norm = apart(reader.load(sources.k_norm(), dtype))
        self._k_norm_bias = apart(reader.load(sources.k_norm_bias(), dtype))
        # In float32 whatever the instance's dtype, as in transformers: it decides, not computes.
        self._weights = reader.load(sources.weights(), torch.float32)

    def ask(
        self, hidden: Tensor, latent: Tensor, factors: Tensor, cache: Tensor, places: Tensor
    ) -> Asked:
        """Keep the keys of these rows, [T, D], in the cache's `places`, and make their questions.

        latent: the attention's query latent. factors: of their positions, as `kernels.rotate` has
        them.
        """
        spec = self._spec
        k = linear(hidden, self._k)
        k = layer_norm(k, k.shape[-1:], self._k_norm, self._k_norm_bias, spec.eps)
        k = kernels.rotate(k[:, None], factors)[:, 0]
        kernels.write_cache(cache, k.to(cache.dtype), places)
        q = linear(latent, self._q).view(len(latent), spec.num_heads, spec.head_dim)
        weights = linear(hidden.to(torch.float32), self._weights)
        return Asked(kernels.rotate(q, factors), weights, cache, spec.top_k)
