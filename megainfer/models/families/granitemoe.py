"""Granite-MoE: multipliers of embedding, residual, scores and logits; softmax of the chosen."""

from dataclasses import replace

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import ExpertLayout, ExpertStorage, TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    Multipliers,
    RouterScore,
    RouterSpec,
)

_MOE = "model.layers.{layer}.block_sparse_moe"

NAMES = TensorNames(
    router=f"{_MOE}.router.layer.weight",
    experts=ExpertLayout(ExpertStorage.STACKED),
    expert_gate_up=(f"{_MOE}.input_linear.weight",),
    expert_down=f"{_MOE}.output_linear.weight",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a GraniteMoeForCausalLM folder."""
    common.refuse_unsupported(config)
    layer = LayerSpec(_attention(config), _moe(config))
    layers = (layer,) * config.positive("num_hidden_layers")
    spec = common.model_spec(config, "GraniteMoeForCausalLM", layers, NAMES, default_eps=1e-6)
    return replace(spec, multipliers=_multipliers(config))


def _multipliers(config: Config) -> Multipliers:
    return Multipliers(
        embedding=config.number("embedding_multiplier", 1.0),
        residual=config.number("residual_multiplier", 1.0),
        logits=1 / config.number("logits_scaling", 1.0),
    )


def _attention(config: Config) -> AttentionSpec:
    return replace(
        common.grouped_heads(config),
        scale=config.number("attention_multiplier", 1.0),
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_local_experts", default=8),
            top_k=config.positive("num_experts_per_tok", default=2),
            normalise=False,
            rounded=True,
            score=RouterScore.LOGIT,
            scale=_multipliers(config).residual,
        ),
        expert=ExpertSpec(config.positive("intermediate_size")),
    )


FAMILY = Family(
    "Granite-MoE",
    "Granite 3.0 and 3.1 1B-A400M, 3B-A800M",
    ("GraniteMoeForCausalLM",),
    read_spec,
)
