"""FLOPs and bytes of a model, layer by layer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from megainfer.compute.selection import Precision
from megainfer.config import DTYPE_BYTES, FOUR_BITS
from megainfer.memory import expert_bytes
from megainfer.models.spec import (
    CACHE_FORMATS,
    CacheFormat,
    DenseSpec,
    LayerSpec,
    ModelSpec,
)
from megainfer.planner.costs.nodes import Nodes, nodes_of
from megainfer.planner.costs.popularity import Popularity
from megainfer.planner.costs.products import (
    Product,
    head_product,
    layer_products,
)

CHOICE_BYTES = 8
"""What a dispatch says of each of a token's experts, a local id and a weight: `m2n.geometry`."""


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """What an attention node computes in `count` layers that are alike.

    has_experts: of the feed-forward half; where not, its dense network is among the products.
    """

    layer: LayerSpec
    count: int
    products: tuple[Product, ...]

    @property
    def has_experts(self) -> bool:
        return not isinstance(self.layer.ffn, DenseSpec)

    def product_flops(self, rows: float) -> float:
        """Of one layer."""
        return 2 * rows * sum(product.weights for product in self.products)


@dataclass(frozen=True, slots=True, eq=False)
class ModelCosts:
    """What computing with a model takes: exact counts, which no device enters. Compared by
    identity, so that what stages keep of it is found at once.

    layers: those that are alike together. own_arithmetic: quantised weights are multiplied in the
    arithmetic made for them wherever a device has it; else, as this project's kernels on GPUs do,
    they are widened to bfloat16.
    """

    spec: ModelSpec
    precision: Precision
    popularity: Popularity
    layers: tuple[LayerCosts, ...]
    head: Product
    own_arithmetic: bool = False
    moe_layers: int = field(init=False)
    """Layers with experts, which the two roles pass to each other."""
    num_experts: int = field(init=False)
    """Of one of them."""
    element_bytes: int = field(init=False)
    """Of hidden states and messages."""
    cache_format: CacheFormat = field(init=False)
    """Of the KV cache."""
    row_bytes: int = field(init=False)
    """Of one token's hidden state; also of a reply's row."""
    dispatch_bytes: int = field(init=False)
    """Of one token in a message to one expert node."""
    expert_bytes: int = field(init=False)
    """Of one expert of one layer, as it is stored."""
    expert_weights: int = field(init=False)
    """Of one expert's products; biases aren't multiplied."""

    def __post_init__(self) -> None:
        # A search asks for these very often, and a spec goes through all its layers for them.
        spec, element_bytes = self.spec, DTYPE_BYTES[self.precision.dtype]
        row_bytes = spec.hidden_size * element_bytes
        for name, value in (
            ("moe_layers", len(spec.moe_layers)),
            ("num_experts", spec.num_experts),
            ("element_bytes", element_bytes),
            ("cache_format", CACHE_FORMATS[self.precision.cache_dtype]),
            ("row_bytes", row_bytes),
            ("dispatch_bytes", row_bytes + CHOICE_BYTES * spec.top_k),
            ("expert_bytes", expert_bytes(spec, self.precision)),
            ("expert_weights", 3 * spec.hidden_size * spec.expert.intermediate),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        precision: Precision,
        popularity: Popularity | None = None,
        own_arithmetic: bool = False,
    ) -> "ModelCosts":
        """popularity: of experts; None for all alike."""
        moe = spec.layers[spec.first_moe_layer].ffn
        assert not isinstance(moe, DenseSpec)
        return cls(
            spec,
            precision,
            popularity or Popularity.of(moe.router),
            tuple(_layers(spec, precision)),
            head_product(spec, precision),
            own_arithmetic,
        )

    def nodes(self, count: int, spares: int = 0) -> Nodes:
        """What `count` expert nodes hold of a layer, each `spares` experts beyond its share. Raises
        ConfigError where there are more of them than experts."""
        return _nodes(self, count, spares)

    def multiplied(self, dtype: str, on_gpu: bool) -> str:
        """In which arithmetic weights of this dtype are multiplied."""
        if not on_gpu and dtype in (*FOUR_BITS, "int8_32"):  # codes become int8, or are widened so
            return "int8"
        if not on_gpu or self.own_arithmetic or dtype == "float32":
            return dtype
        return "float32" if self.precision.dtype == "float32" else "bfloat16"

    def expert_flops(self, rows: float) -> float:
        """Of the routed experts of one layer, for `rows` tokens."""
        return 2 * rows * self.popularity.top_k * self.expert_weights

    def head_flops(self, rows: float) -> float:
        return 2 * rows * self.head.weights


@lru_cache(maxsize=4096)
def _nodes(costs: ModelCosts, count: int, spares: int) -> Nodes:
    return nodes_of(costs.popularity, count, spares)


def _layers(spec: ModelSpec, precision: Precision) -> Iterator[LayerCosts]:
    first = dict[LayerSpec, int]()
    for layer, own in enumerate(spec.layers):
        first.setdefault(own, layer)
    for own, count in Counter(spec.layers).items():
        yield LayerCosts(own, count, layer_products(spec, first[own], precision))
