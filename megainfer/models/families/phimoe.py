"""Phi-3.5-MoE: layer norms, biases everywhere in attention, a sparsemixer router."""

from dataclasses import replace

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
    NormKind,
    NormSpec,
    RouterScore,
    RouterSpec,
)

# Microsoft's code, and so its checkpoint, writes the class in the second way.
ARCHITECTURES = ("PhimoeForCausalLM", "PhiMoEForCausalLM")
_MOE = "model.layers.{layer}.block_sparse_moe"

NAMES = TensorNames(
    router=f"{_MOE}.gate.weight",
    expert_gate_up=(f"{_MOE}.experts.{{expert}}.w1.weight", f"{_MOE}.experts.{{expert}}.w3.weight"),
    expert_down=f"{_MOE}.experts.{{expert}}.w2.weight",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a PhimoeForCausalLM folder."""
    common.refuse_unsupported(config)
    layer = LayerSpec(_attention(config), _moe(config))
    layers = (layer,) * config.positive("num_hidden_layers")
    spec = common.model_spec(config, ARCHITECTURES[0], layers, NAMES, default_eps=1e-5)
    return replace(
        spec,
        norm=NormSpec(spec.norm.eps, NormKind.LAYER, bias=True),
        lm_head_bias=config.flag("lm_head_bias", False),
    )


def _attention(config: Config) -> AttentionSpec:
    bias = config.flag("attention_bias", False)
    longest = config.positive("max_position_embeddings")
    window = config.positive("sliding_window", default=longest)
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads", default=8),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config, default_theta=1_000_000.0),
        qkv_bias=bias,
        out_bias=bias,
        window=window if window < longest else None,
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_local_experts", default=16),
            top_k=config.positive("num_experts_per_tok", default=2),
            normalise=False,
            rounded=True,
            score=RouterScore.SPARSEMIXER,
            jitter=config.number("router_jitter_noise", 0.01),
        ),
        expert=ExpertSpec(config.positive("intermediate_size")),
    )


FAMILY = Family("Phi-3.5-MoE", "Phi-3.5-MoE-instruct", ARCHITECTURES, read_spec)
