"""The attention node's half of a model in C++: two or three calls a layer, float32 inside."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.chain import CountedExperts
from megainfer.compute.cpu.attention import load_attention
from megainfer.compute.cpu.chain import CpuChain, PlainRouting, chains_of
from megainfer.compute.cpu.delta_net import DeltaNet
from megainfer.compute.cpu.ffn import Dense, Gate, SharedExpert
from megainfer.compute.cpu.kernels.attention import AttentionKernel, step_rows
from megainfer.compute.cpu.kernels.attention_layer import BLOCK_TOKENS, PackedAttention, block_shape
from megainfer.compute.cpu.latent import LatentAttention, SparseLatentAttention, load_latent
from megainfer.compute.cpu.loader import Loader
from megainfer.compute.half import HalfSource, Routed
from megainfer.compute.kv_cache import KVCache
from megainfer.compute.rotary import RotaryTables, rotary_of, rotary_tables
from megainfer.compute.vocabulary import TokenTable
from megainfer.errors import ConfigError
from megainfer.models.sources import (
    DeltaNetSources,
    FfnSources,
    LatentSources,
    ModelSources,
    layer_attention,
)
from megainfer.models.spec import DenseSpec
from megainfer.topology import Placement


class CpuLayer:
    """`half.RankLayer` over packed weights."""

    def __init__(self, loader: Loader, layer: int, rotary: RotaryTables) -> None:
        spec, shard = loader.source.spec, loader.source.shard
        self._kernel = loader.kernel
        self._attention: PackedAttention | None = None
        self._other: LatentAttention | SparseLatentAttention | DeltaNet | None = None
        attention = layer_attention(spec, layer, shard)
        if isinstance(attention, DeltaNetSources):
            self._other = DeltaNet(attention, loader)
        elif isinstance(attention, LatentSources):
            table = rotary_of(attention.attention, rotary)
            assert table is not None
            self._other = load_latent(attention, loader, table)
        else:
            own = attention.attention
            self._heads = own.num_kv_heads, own.head_dim
            self._attention = load_attention(attention, loader, rotary_of(own, rotary))
        ffn, sources = spec.layers[layer].ffn, FfnSources(spec, layer, shard)
        self._dense = self._gate = self._shared = None
        if isinstance(ffn, DenseSpec):
            self._dense = Dense(ffn, sources, loader)
        else:
            if shard.leads:
                self._gate = Gate(ffn, sources, loader)
            if ffn.shared is not None:
                self._shared = SharedExpert(ffn.shared, spec.multipliers.residual, sources, loader)

    @property
    def plain_routing(self) -> PlainRouting | None:
        """What comes before the experts, where there is nothing else beside them."""
        if self._gate is None or self._shared is not None or self._attention is None:
            return None
        return PlainRouting(self._attention, self._gate.packed)

    def cache_shapes(self, block_size: int, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
        """See `half.LayerHalf.cache_shapes`. Raises ConfigError for blocks of another size."""
        if block_size != BLOCK_TOKENS:
            raise ConfigError(
                f"the CPU kernels need KV blocks of {BLOCK_TOKENS} tokens, not of {block_size}"
            )
        if self._other is None:
            return (block_shape(*self._heads, dtype),)
        return self._other.block_shapes(dtype)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """See `half.LayerHalf.state_shapes`."""
        return () if self._other is None else self._other.state_shapes

    def attend(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> None:
        """See `half.LayerHalf.attend`."""
        if self._attention is None:
            assert self._other is not None
            self._other.attend(x, batch, caches)
            return
        (cache,) = caches
        step = step_rows(batch)
        self._kernel.attend(self._attention, step, cache, x)

    def attended(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """See `half.RankLayer.attended`."""
        whole = x.clone()
        self.attend(whole, batch, caches)
        return whole.sub_(x)

    def fed_forward(self, x: Tensor) -> Tensor:
        """See `half.RankLayer.fed_forward`."""
        assert self._dense is not None, "a layer with a dense network"
        whole = x.clone()
        self._dense.add(whole)
        return whole.sub_(x)

    def place(self, placement: Placement) -> None:
        """See `half.LayerHalf.place`."""
        if self._gate is not None:
            self._gate.place(placement)

    def feed_forward(self, x: Tensor, batch: StepBatch) -> Routed | None:
        """See `half.LayerHalf.feed_forward`."""
        if self._dense is not None:
            self._dense.add(x)
        return None if self._gate is None else self._gate.forward(x, batch)

    def shared(self, hidden: Tensor) -> Tensor | None:
        """See `half.LayerHalf.shared`."""
        return None if self._shared is None else self._shared.forward(hidden)


class CpuHalf:
    """`half.ModelHalf` over packed weights; the residual stream is float32.

    weight_dtype: of `config.WEIGHT_DTYPES`. kernel: what it computes with, and whose threads.
    """

    def __init__(self, source: HalfSource, weight_dtype: str, kernel: AttentionKernel) -> None:
        spec, sources = source.spec, ModelSources(source.spec, source.shard)
        self._kernel = kernel
        self._row_dtype = source.dtype
        loader = Loader(source, kernel, weight_dtype, kernel.threads)
        self._multipliers = spec.multipliers
        self._tokens = TokenTable(source.reader.load(sources.embedding(), source.dtype), sources)
        self._final_norm = loader.norm(sources.final_norm(), sources.final_norm_bias())
        head, bias = sources.lm_head(), sources.lm_head_bias()
        self._lm_head = (
            loader.linear(head, bias)
            if head
            else kernel.pack(self._tokens.weight, weight_dtype, loader.maybe_vector(bias))
        )
        rotary = rotary_tables(spec, source.max_positions, torch.float32)
        self.layers = [CpuLayer(loader, index, rotary) for index in range(len(spec.layers))]

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `half.ModelHalf.embed`."""
        x = self._tokens(token_ids).to(torch.float32)
        return _scaled(x, self._multipliers.embedding)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `half.ModelHalf.logits`."""
        logits = self._kernel.head(self._lm_head, self._final_norm, x, rows)
        return _scaled(logits, self._multipliers.logits)

    def chains(self, experts: Mapping[int, CountedExperts], kv: KVCache) -> Sequence[CpuChain]:
        """See `half.ModelHalf.chains`: of layers whose network is their experts alone."""
        plain = {layer: self.layers[layer].plain_routing for layer in experts}
        routings = {layer: routing for layer, routing in plain.items() if routing is not None}
        return chains_of(self._kernel, routings, experts, kv, self._row_dtype)


def _scaled(x: Tensor, multiplier: float) -> Tensor:
    """In place."""
    return x if multiplier == 1.0 else x.mul_(multiplier)
