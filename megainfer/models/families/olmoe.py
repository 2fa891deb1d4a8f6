"""OLMoE: q and k normalised over all heads together, then q, k and v clipped if asked for."""

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
    return replace(
        common.grouped_heads(config),
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
