"""Mixtral: experts in every layer, the chosen weights always normalised."""

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    RouterSpec,
)

_MOE = "model.layers.{layer}.block_sparse_moe"

NAMES = TensorNames(
    router=f"{_MOE}.gate.weight",
    expert_gate_up=(f"{_MOE}.experts.{{expert}}.w1.weight", f"{_MOE}.experts.{{expert}}.w3.weight"),
    expert_down=f"{_MOE}.experts.{{expert}}.w2.weight",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a MixtralForCausalLM folder."""
    common.refuse_unsupported(config)
    layer = LayerSpec(_attention(config), _moe(config))
    layers = (layer,) * config.positive("num_hidden_layers")
    return common.model_spec(config, "MixtralForCausalLM", layers, NAMES, default_eps=1e-5)


def _attention(config: Config) -> AttentionSpec:
    heads = config.positive("num_attention_heads")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=heads),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config, default_theta=1_000_000.0),
        window=common.sliding_window(config),
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_local_experts"),
            top_k=config.positive("num_experts_per_tok"),
            normalise=True,
            rounded=False,
        ),
        expert=ExpertSpec(config.positive("intermediate_size")),
    )


FAMILY = Family("Mixtral", "Mixtral 8x7B and 8x22B", ("MixtralForCausalLM",), read_spec)
