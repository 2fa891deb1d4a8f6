"""OLMoE: q and k normalised over all heads together, then q, k and v clipped if asked for."""

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
    QkNorm,
    RouterSpec,
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of an OlmoeForCausalLM folder."""
    common.refuse_unsupported(config)
    layer = LayerSpec(_attention(config), _moe(config))
    layers = (layer,) * config.positive("num_hidden_layers")
    return common.model_spec(config, "OlmoeForCausalLM", layers, TensorNames(), default_eps=1e-5)


def _attention(config: Config) -> AttentionSpec:
    heads = config.positive("num_attention_heads")
    bias = config.flag("attention_bias", False)
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=heads),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QkNorm.FULL,
        clip_qkv=config.optional_number("clip_qkv"),
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_experts"),
            top_k=config.positive("num_experts_per_tok"),
            normalise=config.flag("norm_topk_prob", False),
            rounded=True,
        ),
        expert=ExpertSpec(config.positive("intermediate_size")),
    )


FAMILY = Family("OLMoE", "OLMoE 1B-7B", ("OlmoeForCausalLM",), read_spec)
