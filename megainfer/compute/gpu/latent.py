"""Multi-head latent attention on a GPU, in the absorbed form."""

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.gpu.indexer import Indexer
from megainfer.compute.gpu.kernels.attention.latent_attention import LatentQueries, attend_latents
from megainfer.compute.gpu.kernels.attention.latents import LatentFactors, keep_latents
from megainfer.compute.gpu.norm import Norm
from megainfer.compute.gpu.output import Output
from megainfer.compute.gpu.products import Products
from megainfer.compute.half import HalfSource
from megainfer.compute.latent_weights import rotated_apart, up_by_head
from megainfer.models.sources import LatentSources


class LatentAttention:
    """Multi-head latent attention over the paged cache, its input norm included.

    All that is projected of the layer's input is projected at once.
    """

    def __init__(
        self, sources: LatentSources, source: HalfSource, rotary: Tensor, products: Products
    ) -> None:
        reader, dtype = source.reader, source.dtype
        self._spec = spec = sources.attention
        self._device, self._products = source.device, products
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        index = sources.indexer()
        self._indexer = indexer = Indexer(index, source, products) if index else None
        self._down, self._down_bias = _down(sources, indexer, reader, dtype)
        self._factors = LatentFactors(
            reader.load(sources.kv_latent_norm(), dtype),
            rotary,
            reader.maybe_load(sources.q_latent_norm(), dtype),
            indexer.norm if indexer else None,
            indexer.bias if indexer else None,
        )
        self._q = rotated_apart(spec, reader.load(sources.q(), dtype), spec.qk_dim)
        self._key_up, self._value_up = up_by_head(spec, reader.load(sources.kv_up(), dtype))
        residual = sources.spec.multipliers.residual
        self._out = Output(sources.out(), sources.out_bias(), reader, dtype, residual, products)

    def add(self, to: Tensor, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """To `to` [T, D], which may be x; the latents and keys of x's tokens go into the cache."""
        spec, hidden, positions = self._spec, self._norm(x), batch.positions
        products = self._products
        down = products.linear(hidden, self._down, self._down_bias)
        latent = keep_latents(self._device, down, spec, self._factors, batch, caches)
        if spec.q_lora_rank is None:
            latent = hidden
        asked = None
        if self._indexer is not None:
            asked = self._indexer.ask(hidden, latent, self._factors.rotary, positions)
        both = products.linear(latent, self._q).view(len(x), spec.num_heads, spec.qk_dim)
        projected = products.by_head(both[..., : spec.nope_dim].transpose(0, 1), self._key_up)
        queries = LatentQueries(projected, both, self._factors.rotary, positions)
        found = self._device.empty((len(x), spec.num_heads, spec.kv_lora_rank), x.dtype)
        for span in batch.spans:
            chosen = None
            if self._indexer is not None and asked is not None:
                chosen = self._indexer.choose(asked, caches[1], span)
            attend_latents(
                self._device, spec, queries, caches[0], span, chosen, found, products.invariant
            )
        values = products.by_head(found.transpose(0, 1), self._value_up.mT)
        self._out.add(to, values.transpose(0, 1).flatten(1))


def _down(
    sources: LatentSources, indexer: Indexer | None, reader: WeightReader, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """What projects to latents and keys, in the order of `keep_latents`, and its bias."""
    spec = sources.attention
    parts = [rotated_apart(spec, reader.load(sources.kv_down(), dtype), spec.latent_dim)]
    if (q_down := reader.maybe_load(sources.q_down(), dtype)) is not None:
        parts.append(q_down)
    if indexer is not None:
        parts.append(indexer.key)
    weight = torch.cat(parts)
    kv_bias = reader.maybe_load(sources.kv_down_bias(), dtype)
    if kv_bias is None:
        return weight, None
    bias = weight.new_zeros(len(weight))  # which an indexer's keys don't have
    bias[: spec.latent_dim] = rotated_apart(spec, kv_bias, spec.latent_dim)
    if (q_bias := reader.maybe_load(sources.q_down_bias(), dtype)) is not None:
        bias[spec.latent_dim : spec.latent_dim + len(q_bias)] = q_bias
    return weight, bias
