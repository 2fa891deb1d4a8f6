"""Ernie 4.5: a softmax router with a bias that only chooses, shared experts, dense layers first."""

from dataclasses import replace

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    RouterSpec,
    SharedExpertSpec,
)

_MOE = "model.layers.{layer}.mlp"

NAMES = TensorNames(
    selection_bias=f"{_MOE}.moe_statics.e_score_correction_bias",
    nested_selection_bias=True,
    shared_gate_up=(
        f"{_MOE}.shared_experts.gate_proj.weight",
        f"{_MOE}.shared_experts.up_proj.weight",
    ),
    shared_down=f"{_MOE}.shared_experts.down_proj.weight",
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of an Ernie4_5_MoeForCausalLM folder.

    The layers for predicting several tokens at once are not read.
    """
    common.refuse_unsupported(config)
    if config.flag("use_bias", False):
        raise config.fail("use_bias", "but biases of this family's networks are not supported")
    attention, moe = _attention(config), _moe(config)
    dense = DenseSpec(config.positive("intermediate_size"))
    layers = tuple(LayerSpec(attention, moe if sparse else dense) for sparse in _sparse(config))
    spec = common.model_spec(config, "Ernie4_5_MoeForCausalLM", layers, NAMES, default_eps=1e-5)
    return replace(spec, tie_word_embeddings=config.flag("tie_word_embeddings", True))


def _sparse(config: Config) -> list[bool]:
    """For each layer, whether it has experts."""
    layers = config.positive("num_hidden_layers")
    start, step = (
        config.whole("moe_layer_start_index", 1),
        config.positive("moe_layer_interval", default=1),
    )
    to_the_end = config.values.get("moe_layer_end_index") == -1
    last = layers - 1 if to_the_end else config.whole("moe_layer_end_index", layers - 1)
    return [(layer + 1) % step == 0 and start <= layer <= last for layer in range(layers)]


def _attention(config: Config) -> AttentionSpec:
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads", default=4),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config, form=common.RopeForm(500_000.0, interleaved=True)),
    )


def _moe(config: Config) -> MoESpec:
    intermediate = config.positive("moe_intermediate_size")
    shared = config.whole("moe_num_shared_experts", 2)
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("moe_num_experts", default=64),
            top_k=config.positive("moe_k", default=6),
            normalise=True,
            rounded=True,
            selection_bias=True,
            least_sum=config.number("moe_norm_min", 1e-12),
            wide=True,
        ),
        expert=ExpertSpec(intermediate),
        shared=SharedExpertSpec(intermediate * shared, gated=False) if shared > 0 else None,
    )


FAMILY = Family(
    "Ernie 4.5",
    "ERNIE-4.5-21B-A3B, 300B-A47B",
    ("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoEForCausalLM"),
    read_spec,
)
