"""One of the devices that share an attention node: what it holds and reads of each layer."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

from megainfer.config import BLOCK_SIZE, DTYPE_BYTES
from megainfer.errors import ConfigError
from megainfer.memory import AttentionWorkspace, attention_bytes, kv_block_bytes, stored_bytes
from megainfer.models.spec import AttentionSpec, DeltaNetSpec, LayerSpec
from megainfer.models.spec.model import STATE_ELEMENT_BYTES
from megainfer.planner.costs.model import LayerCosts, ModelCosts
from megainfer.planner.costs.products import Product
from megainfer.planner.hardware import Device

ATTENTION_KERNELS = 3
"""Beside its products: the norm, rotating and keeping keys, attending."""
EXPERT_SIDE_KERNELS = 4
"""The norm, choosing experts, packing messages, adding replies."""
DENSE_KERNELS = 1
"""The norm."""


@dataclass(frozen=True, slots=True)
class RankProduct:
    """A product on one rank: FLOPs a row, seconds of reading its weights, and in which arithmetic
    it is."""

    flops: float
    read_seconds: float
    dtype: str


@dataclass(frozen=True, slots=True)
class RankLayer:
    """Layers that are alike, on one rank. kernels: that one of them launches. reductions: sums over
    ranks in one of them."""

    layer: LayerSpec
    count: int
    has_experts: bool
    products: tuple[RankProduct, ...]
    kernels: int
    reductions: int


@dataclass(frozen=True, slots=True)
class Rank:
    """All that doesn't change with the step. Bytes are of this rank; kv_bytes: of one token in all
    layers; state_bytes: of one sequence. dtypes: the arithmetics of its products."""

    layers: tuple[RankLayer, ...]
    head: RankProduct
    dtypes: tuple[str, ...]
    weight_bytes: int
    kv_bytes: float
    state_bytes: float
    workspace: AttentionWorkspace


@lru_cache(maxsize=512)
def rank_of(costs: ModelCosts, device: Device, tp: int) -> Rank:
    """Raises ConfigError where there are more ranks than heads."""
    for kind in costs.layers:
        _check(kind.layer, tp)
    layers = tuple(_layer(kind, costs, device, tp) for kind in costs.layers)
    head = _product(costs.head, costs, device, tp)
    products = [*(product for layer in layers for product in layer.products), head]
    block = kv_block_bytes(costs.spec, costs.precision)
    return Rank(
        layers,
        head,
        tuple(dict.fromkeys(product.dtype for product in products)),
        attention_bytes(costs.spec, costs.precision) - _elsewhere(costs, tp),
        block / BLOCK_SIZE * _kv_share(costs, tp),
        sum(kind.count * _state_bytes(kind.layer, tp) for kind in costs.layers),
        AttentionWorkspace.of(costs.spec, costs.precision),
    )


def _check(layer: LayerSpec, tp: int) -> None:
    attention = layer.attention
    heads = attention.key_heads if isinstance(attention, DeltaNetSpec) else attention.num_heads
    if not 1 <= tp <= heads:
        raise ConfigError(
            f"{tp} devices can't share an attention layer of {heads} heads; use 1 to {heads}"
        )


def _layer(kind: LayerCosts, costs: ModelCosts, device: Device, tp: int) -> RankLayer:
    other = EXPERT_SIDE_KERNELS if kind.has_experts else DENSE_KERNELS
    return RankLayer(
        kind.layer,
        kind.count,
        kind.has_experts,
        tuple(_product(product, costs, device, tp) for product in kind.products),
        len(kind.products) + ATTENTION_KERNELS + other,
        sum(product.reduced for product in kind.products),
    )


def _product(product: Product, costs: ModelCosts, device: Device, tp: int) -> RankProduct:
    weights = product.of_rank(tp)
    size = stored_bytes(ceil(weights), product.dtype)
    reached = device.efficiency.weights_read.at(size)
    dtype = costs.multiplied(product.dtype, device.kind == "gpu")
    return RankProduct(2 * weights, size / (device.memory_bytes_per_second * reached), dtype)


def _elsewhere(costs: ModelCosts, tp: int) -> int:
    """Bytes of an attention node's weights that this rank has not; norms and biases it has."""
    spec, precision = costs.spec, costs.precision
    table = spec.vocab_size * spec.hidden_size * (1 - 1 / tp)
    every = [(kind.count, product) for kind in costs.layers for product in kind.products]
    return int(table * DTYPE_BYTES[precision.dtype]) + sum(
        count * stored_bytes(int(product.weights - product.of_rank(tp)), product.dtype)
        for count, product in (*every, (1, costs.head))
        # Where the table of embeddings is the head too, and not packed, it isn't there twice.
        if not (product is costs.head and spec.tie_word_embeddings)
    )


def _kv_share(costs: ModelCosts, tp: int) -> float:
    """Of the cache's bytes that one rank has: of its own heads; latents and index keys all."""
    own, every = 0.0, 0
    for layer in costs.spec.layers:
        size = layer.attention.cached_bytes(costs.cache_format)
        attention, share = layer.attention, 1.0
        if isinstance(attention, AttentionSpec):
            share = ceil(attention.num_kv_heads / tp) / attention.num_kv_heads
        own, every = own + size * share, every + size
    return own / every if every else 0.0


def _state_bytes(layer: LayerSpec, tp: int) -> float:
    attention = layer.attention
    if not isinstance(attention, DeltaNetSpec):
        return 0.0
    share = ceil(attention.key_heads / tp) / attention.key_heads
    return share * sum(map(prod, attention.state_shapes)) * STATE_ELEMENT_BYTES
