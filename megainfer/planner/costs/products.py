"""The dense products of a layer on an attention node: all weights that each of its rows meets.

Pieces and their shapes are those of `megainfer.models.sources`, of which a test takes the sums.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

from megainfer.compute.selection import Precision
from megainfer.models.sources import (
    AttentionSources,
    DeltaNetSources,
    FfnSources,
    LatentSources,
    ModelSources,
    Source,
    layer_attention,
)
from megainfer.models.spec import DenseSpec, MlaSpec, ModelSpec

MANY = 2**62
"""Ranks that a weight can be split over where nothing bounds them but its own size."""


@dataclass(frozen=True, slots=True)
class Product:
    """What is multiplied at once. parts: (weights, ranks over which they can be split); beyond that
    ranks hold copies. reduced: ranks add up what each of them got. dtype: of the weights."""

    name: str
    parts: tuple[tuple[int, int], ...]
    reduced: bool = False
    dtype: str = "bfloat16"

    @property
    def weights(self) -> int:
        return sum(count for count, _ in self.parts)

    def of_rank(self, ranks: int) -> float:
        """Weights that one of so many ranks holds."""
        return sum(count / min(ranks, most) for count, most in self.parts)


def layer_products(spec: ModelSpec, layer: int, precision: Precision) -> tuple[Product, ...]:
    """All of a layer's on an attention node, each with its dtype: sparse attention isn't quantised,
    see `memory.attention_bytes`."""
    attention = spec.layers[layer].attention
    sparse = isinstance(attention, MlaSpec) and attention.indexer is not None
    own = precision.dtype if sparse else precision.attention_dtype
    return (
        *(replace(product, dtype=own) for product in _attention(spec, layer)),
        *(replace(product, dtype=precision.attention_dtype) for product in _ffn(spec, layer)),
    )


def head_product(spec: ModelSpec, precision: Precision) -> Product:
    """Of a row's hidden state with all tokens'."""
    sources = ModelSources(spec)
    product = _product("head", sources.lm_head() or sources.embedding())
    return replace(product, dtype=precision.attention_dtype)


def _attention(spec: ModelSpec, layer: int) -> tuple[Product, ...]:
    sources = layer_attention(spec, layer)
    if isinstance(sources, AttentionSources):
        return tuple(_softmax(sources))
    if isinstance(sources, LatentSources):
        return tuple(_latent(sources))
    return tuple(_delta_net(sources))


def _ffn(spec: ModelSpec, layer: int) -> tuple[Product, ...]:
    """Of what the attention node computes of a layer's feed-forward half: a dense network, or the
    router and the experts that every token sees."""
    sources, ffn = FfnSources(spec, layer), spec.layers[layer].ffn
    if isinstance(ffn, DenseSpec):
        return (
            _product("dense in", sources.dense_gate_up(ffn)),
            _product("dense out", sources.dense_down(ffn), reduced=True),
        )
    router = _product("router", sources.router(ffn), most=1)
    if ffn.shared is None:
        return (router,) if router.weights else ()
    shared = (
        _product("shared in", sources.shared_gate_up(ffn.shared)),
        _product("shared out", sources.shared_down(ffn.shared), reduced=True),
    )
    gate = (_product("shared gate", sources.shared_gate(), most=1),) if ffn.shared.gated else ()
    return (*((router,) if router.weights else ()), *shared, *gate)


def _softmax(sources: AttentionSources) -> Iterator[Product]:
    attention, hidden = sources.attention, sources.spec.hidden_size
    queries, keys, values = (size * hidden for size in attention.qkv_sizes)
    heads, kv_heads = attention.num_heads, attention.num_kv_heads
    yield Product("qkv", ((queries, heads), (keys, kv_heads), (values, kv_heads)))
    yield _product("out", sources.out(), most=heads, reduced=True)


def _latent(sources: LatentSources) -> Iterator[Product]:
    heads = sources.attention.num_heads
    indexer = sources.indexer()
    keys = (*indexer.k(), *indexer.weights()) if indexer else ()
    # Whatever is projected of the layer's input is projected at once, and by each rank alone.
    down = [*sources.q_down(), *sources.kv_down()]
    if sources.attention.q_lora_rank is not None:
        yield _product("latents", [*down, *keys], most=1)
        yield _product("queries", sources.q(), most=heads)
    else:
        yield Product("queries and latents", ((_weights(sources.q()), heads), (_weights(down), 1)))
    if indexer is not None:
        yield _product("index queries", indexer.q(), most=1)
    yield _product("latent up", sources.kv_up(), most=heads)
    yield _product("out", sources.out(), most=heads, reduced=True)


def _delta_net(sources: DeltaNetSources) -> Iterator[Product]:
    heads = sources.attention.key_heads
    yield _product("qkvz", sources.qkvz(), most=heads)
    yield _product("rates and decays", sources.rates_and_decays(), most=heads)
    yield _product("out", sources.out(), most=heads, reduced=True)


def _product(
    name: str, pieces: Iterable[Source], most: int | None = None, reduced: bool = False
) -> Product:
    return Product(name, ((_weights(pieces), most or MANY),), reduced)


def _weights(pieces: Iterable[Source]) -> int:
    return sum(prod(piece.shape) for piece in pieces)
