"""A whole checkpoint."""

from dataclasses import dataclass
from math import prod

from megainfer.errors import ModelError
from megainfer.models.names import TensorNames
from megainfer.models.spec.attention import AttentionSpec, MlaSpec
from megainfer.models.spec.delta_net import DeltaNetSpec
from megainfer.models.spec.ffn import DenseSpec, ExpertSpec, MoESpec
from megainfer.models.spec.norm import NormSpec

STATE_ELEMENT_BYTES = 4
MAX_EXPERTS_IN_ALL = 2**18
"""A plan says of each where it is; the largest models have a tenth."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec | MlaSpec | DeltaNetSpec
    ffn: DenseSpec | MoESpec


@dataclass(frozen=True, slots=True)
class Multipliers:
    """embedding: of what the embedding gives. residual: of what attention, dense networks and
    shared experts add; that of routed experts is part of their router's scale. logits: of the
    head's output."""

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole checkpoint.

    norm: of every layer's two inputs and of the head's; its eps also serves the norms of queries
    and keys. dtype: what config.json says the weights are stored in. eos_token_ids: tokens that end
    a text. names: what its tensors are called on disk. lm_head_bias: the head has one.

    Raises ModelError when no layer has experts, or when the layers' routers differ in size.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tie_word_embeddings: bool
    max_position: int
    dtype: str
    eos_token_ids: tuple[int, ...]
    names: TensorNames
    multipliers: Multipliers = Multipliers()
    lm_head_bias: bool = False

    def __post_init__(self) -> None:
        sizes = {(moe.router.num_experts, moe.router.top_k, moe.expert) for moe in self._moes()}
        if not sizes:
            raise ModelError(f"{self.architecture}: no layer of this checkpoint has experts")
        if (count := len(self._moes()) * self.num_experts) > MAX_EXPERTS_IN_ALL:
            raise ModelError(
                f"{self.architecture}: {count} experts in all layers, at most {MAX_EXPERTS_IN_ALL} "
                "can be planned for"
            )
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

    @property
    def is_recurrent(self) -> bool:
        """Whether some layer keeps a state of each sequence that only its tokens in order give."""
        return any(isinstance(layer.attention, DeltaNetSpec) for layer in self.layers)

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence's states in all layers, which are float32; 0 without any."""
        kinds = [layer.attention for layer in self.layers]
        shapes = [s for kind in kinds if isinstance(kind, DeltaNetSpec) for s in kind.state_shapes]
        return sum(map(prod, shapes)) * STATE_ELEMENT_BYTES

    def expert_weight_bytes(self, dtype_bytes: int) -> int:
        """Bytes of one expert of one layer: gate, up and down, and their biases."""
        hidden, intermediate = self.hidden_size, self.expert.intermediate
        biases = 2 * intermediate + hidden if self.expert.bias else 0
        return (3 * hidden * intermediate + biases) * dtype_bytes
