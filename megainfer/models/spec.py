"""What a model is made of, as data: the axes along which the supported families differ.

Pure: no torch. One `ModelSpec` describes one checkpoint; the attention half and the expert half
of a layer are described apart, because different processes build them. A family that needs a new
axis adds a field whose default means "absent", or a new kind beside `AttentionSpec` (what an MLA
layer would be) or beside `DenseSpec` and `MoESpec`.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from megainfer.errors import ModelError
from megainfer.models.names import TensorNames


class QkNorm(StrEnum):
    """Whether queries and keys are RMS-normalised before the rotation, and over what."""

    NONE = "none"
    HEAD = "head"  # each head by itself, one weight [d] for all heads
    FULL = "full"  # all heads together, a weight as long as the projection


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding of the default type: frequencies theta^(-2i/d)."""

    theta: float


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Softmax attention with grouped key and value heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    clip_qkv: float | None = None  # q, k and v are clamped to [-clip, clip]

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim {self.head_dim} is odd, so it cannot be rotated")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def cache_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of what one token leaves in the cache, a tensor each: here its key, its value."""
        head_shape = (self.num_kv_heads, self.head_dim)
        return (head_shape, head_shape)


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """One SwiGLU feed-forward network for all tokens; it lives on the attention node."""

    intermediate: int


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Softmax over all experts in float32, then the best `top_k`.

    normalise: the chosen weights are divided by their sum. rounded: they are then rounded to the
    model's dtype (no difference in float32).
    """

    num_experts: int
    top_k: int
    normalise: bool
    rounded: bool

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ModelError(
                f"num_experts_per_tok is {self.top_k}, but the model has {self.num_experts} experts"
            )


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One routed SwiGLU expert."""

    intermediate: int


@dataclass(frozen=True, slots=True)
class SharedExpertSpec:
    """A SwiGLU network that sees every token; its output is scaled by sigmoid(gate . hidden)."""

    intermediate: int


@dataclass(frozen=True, slots=True)
class MoESpec:
    """A feed-forward half whose experts live on the expert nodes."""

    router: RouterSpec
    expert: ExpertSpec
    shared: SharedExpertSpec | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec
    ffn: DenseSpec | MoESpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole checkpoint.

    dtype: what config.json says the weights are stored in. eos_token_ids: tokens that end a text.
    names: what its tensors are called on disk.

    Raises ModelError when no layer has experts, or when the layers' routers differ in size.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    tie_word_embeddings: bool
    max_position: int
    dtype: str
    eos_token_ids: tuple[int, ...]
    names: TensorNames

    def __post_init__(self) -> None:
        sizes = {(moe.router.num_experts, moe.router.top_k, moe.expert) for moe in self._moes()}
        if not sizes:
            raise ModelError(f"{self.architecture}: no layer of this checkpoint has experts")
        if len(sizes) > 1:
            raise ModelError(
                f"{self.architecture}: all MoE layers must agree on (experts, experts a token "
                f"chooses, expert size), but they differ: {', '.join(sorted(map(str, sizes)))}"
            )

    def _moes(self) -> list[MoESpec]:
        return [layer.ffn for layer in self.layers if isinstance(layer.ffn, MoESpec)]

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that have experts, ascending."""
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer.ffn, MoESpec))

    @property
    def first_moe_layer(self) -> int:
        return self.moe_layers[0]

    @property
    def num_experts(self) -> int:
        """Routed experts of one MoE layer."""
        return self._moes()[0].router.num_experts

    @property
    def top_k(self) -> int:
        return self._moes()[0].router.top_k

    @property
    def expert(self) -> ExpertSpec:
        return self._moes()[0].expert

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes that one token takes in the caches of all layers."""
        shapes = [shape for layer in self.layers for shape in layer.attention.cache_shapes]
        return sum(prod(shape) for shape in shapes) * dtype_bytes

    def expert_weight_bytes(self, dtype_bytes: int) -> int:
        """Bytes of one expert of one layer: gate, up and down."""
        return 3 * self.hidden_size * self.expert.intermediate * dtype_bytes
