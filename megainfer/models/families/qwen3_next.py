"""Qwen3-Next: gated DeltaNet in three of four layers, gated softmax attention in the fourth."""

from dataclasses import replace

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    DeltaNetSpec,
    DenseSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    QkNorm,
    RouterSpec,
    SharedExpertSpec,
)

SOFTMAX, RECURRENT = "full_attention", "linear_attention"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen3NextForCausalLM folder."""
    common.refuse_unsupported(config)
    attentions: dict[str, AttentionSpec | DeltaNetSpec] = {
        SOFTMAX: _attention(config),
        RECURRENT: _delta_net(config),
    }
    dense, moe = DenseSpec(config.positive("intermediate_size")), _moe(config)
    layers = tuple(
        LayerSpec(attentions[kind], moe if sparse else dense)
        for kind, sparse in zip(_layer_types(config), common.sparse_layers(config), strict=True)
    )
    spec = common.model_spec(config, "Qwen3NextForCausalLM", layers, TensorNames(), 1e-6)
    return replace(spec, norm=replace(spec.norm, unit_offset=True))


def _layer_types(config: Config) -> list[str]:
    """The kind of each layer's attention: as listed, else the last of each interval is softmax."""
    count, kinds = config.positive("num_hidden_layers"), config.values.get("layer_types")
    if kinds is None:
        interval = config.positive("full_attention_interval", default=4)
        return [RECURRENT if (layer + 1) % interval else SOFTMAX for layer in range(count)]
    if not isinstance(kinds, list) or set(kinds) - {SOFTMAX, RECURRENT}:
        raise config.fail("layer_types", f"but must be a list of {SOFTMAX} and {RECURRENT}")
    if len(kinds) != count:
        raise config.fail("layer_types", f"{len(kinds)} layers, but num_hidden_layers is {count}")
    if SOFTMAX not in kinds:
        raise config.fail("layer_types", f"but without {SOFTMAX} there is no KV cache to plan for")
    return kinds


def _attention(config: Config) -> AttentionSpec:
    bias, head_dim = config.flag("attention_bias", False), config.positive("head_dim", default=256)
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=head_dim,
        rope=common.read_rope(config, form=common.RopeForm(head_dim=head_dim, share=0.25)),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QkNorm.HEAD,
        gated=True,
    )


def _delta_net(config: Config) -> DeltaNetSpec:
    return DeltaNetSpec(
        key_heads=config.positive("linear_num_key_heads"),
        value_heads=config.positive("linear_num_value_heads"),
        key_dim=config.positive("linear_key_head_dim"),
        value_dim=config.positive("linear_value_head_dim"),
        taps=config.positive("linear_conv_kernel_dim"),
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_experts", "num_local_experts"),
            top_k=config.positive("num_experts_per_tok"),
            normalise=config.flag("norm_topk_prob", True),
            rounded=True,
        ),
        expert=ExpertSpec(config.positive("moe_intermediate_size")),
        shared=SharedExpertSpec(config.positive("shared_expert_intermediate_size")),
    )


FAMILY = Family(
    "Qwen3-Next", "Qwen3-Next-80B-A3B, Qwen3-Coder-Next", ("Qwen3NextForCausalLM",), read_spec
)
