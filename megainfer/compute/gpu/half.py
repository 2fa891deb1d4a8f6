"""The attention node's half of a model on a GPU."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.chain import Chain, CountedExperts
from megainfer.compute.gpu.attention import Attention
from megainfer.compute.gpu.delta_net import DeltaNet
from megainfer.compute.gpu.ffn import Dense, Gate, SharedExpert
from megainfer.compute.gpu.latent import LatentAttention
from megainfer.compute.gpu.norm import Norm
from megainfer.compute.gpu.products import Products
from megainfer.compute.half import HalfSource, Routed
from megainfer.compute.kv_cache import KVCache
from megainfer.compute.rotary import RotaryTables, rotary_of, rotary_tables
from megainfer.compute.vocabulary import TokenTable
from megainfer.models.sources import (
    DeltaNetSources,
    FfnSources,
    LatentSources,
    ModelSources,
    layer_attention,
)
from megainfer.models.spec import DeltaNetSpec, DenseSpec
from megainfer.topology import Placement


class GpuLayer:
    """`half.RankLayer`: attention, and either a dense network or a gate, which is the first
    rank's."""

    def __init__(
        self, source: HalfSource, layer: int, rotary: RotaryTables, products: Products
    ) -> None:
        spec, reader, dtype = source.spec, source.reader, source.dtype
        attention = spec.layers[layer].attention.of_rank(source.shard.ranks)
        self._token_shapes = attention.cache_shapes
        self.state_shapes = attention.state_shapes if isinstance(attention, DeltaNetSpec) else ()
        self._attention = _attention(source, layer, rotary, products)
        ffn, sources = spec.layers[layer].ffn, FfnSources(spec, layer, source.shard)
        self._dense = self._gate = self._shared = None
        if isinstance(ffn, DenseSpec):
            self._dense = Dense(ffn, sources, reader, dtype, products)
            return
        if source.shard.leads:
            self._gate = Gate(ffn, sources, reader, source.placement, dtype, products)
        if ffn.shared is not None:
            self._shared = SharedExpert(ffn.shared, sources, reader, dtype, products)

    def cache_shapes(self, block_size: int, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """See `half.LayerHalf.cache_shapes`."""
        return tuple((block_size, *shape) for shape in self._token_shapes)

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        self._attention.add(x, x, batch, caches)

    def attended(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """See `half.RankLayer.attended`."""
        part = torch.zeros_like(x)
        self._attention.add(part, x, batch, caches)
        return part

    def place(self, placement: Placement) -> None:
        """See `half.LayerHalf.place`."""
        if self._gate is not None:
            self._gate.homes.move(placement)

    def feed_forward(self, x: Tensor, batch: StepBatch) -> Routed | None:
        """See `half.LayerHalf.feed_forward`."""
        if self._dense is not None:
            self._dense.add(x, x)
        return None if self._gate is None else self._gate.forward(x, batch)

    def fed_forward(self, x: Tensor) -> Tensor:
        """See `half.RankLayer.fed_forward`."""
        assert self._dense is not None, "a layer with a dense network"
        part = torch.zeros_like(x)
        self._dense.add(part, x)
        return part

    def shared(self, hidden: Tensor) -> Tensor | None:
        """See `half.LayerHalf.shared`."""
        return None if self._shared is None else self._shared.forward(hidden)


class GpuHalf:
    """`half.ModelHalf` that computes in the instance's dtype."""

    def __init__(self, source: HalfSource, products: Products) -> None:
        self._products = products
        spec, reader, dtype = source.spec, source.reader, source.dtype
        sources = ModelSources(spec, source.shard)
        self._multipliers = spec.multipliers
        self._tokens = TokenTable(reader.load(sources.embedding(), dtype), sources)
        self._final_norm = Norm(
            spec.norm, sources.final_norm(), sources.final_norm_bias(), reader, dtype
        )
        head, bias = sources.lm_head(), sources.lm_head_bias()
        self._lm_head = reader.load(head, dtype) if head else self._tokens.weight
        self._lm_head_bias = reader.maybe_load(bias, dtype)
        rotary = rotary_tables(spec, source.max_positions, dtype, source.device)
        self.layers = [
            GpuLayer(source, index, rotary, products) for index in range(len(spec.layers))
        ]

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `half.ModelHalf.embed`."""
        return _scaled(self._tokens(token_ids), self._multipliers.embedding)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `half.ModelHalf.logits`."""
        hidden = self._final_norm(x[rows])
        logits = self._products.linear(hidden, self._lm_head, self._lm_head_bias)
        return _scaled(logits.to(torch.float32), self._multipliers.logits)

    def chains(self, experts: Mapping[int, CountedExperts], kv: KVCache) -> Sequence[Chain]:
        """None: each layer is asked by itself."""
        return ()


def _attention(
    source: HalfSource, layer: int, rotary: RotaryTables, products: Products
) -> Attention | LatentAttention | DeltaNet:
    sources = layer_attention(source.spec, layer, source.shard)
    if isinstance(sources, DeltaNetSources):
        return DeltaNet(sources, source, products)
    table = rotary_of(sources.attention, rotary)
    if isinstance(sources, LatentSources):
        assert table is not None
        return LatentAttention(sources, source, table, products)
    return Attention(sources, source, table, products)


def _scaled(x: Tensor, multiplier: float) -> Tensor:
    """In place."""
    return x if multiplier == 1.0 else x.mul_(multiplier)
