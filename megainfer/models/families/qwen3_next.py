"""Qwen3-Next: gated DeltaNet in three of four layers, gated softmax attention in the fourth."""

from collections.abc import Sequence
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

RECURRENT = "linear_attention"
"""What layer_types calls gated DeltaNet."""


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen3NextForCausalLM folder."""
    dense, moe = DenseSpec(config.positive("intermediate_size")), moe_spec(config)
    ffns = [moe if sparse else dense for sparse in common.sparse_layers(config)]
    return hybrid_spec(config, "Qwen3NextForCausalLM", ffns, TensorNames())


def hybrid_spec(
    config: Config, architecture: str, ffns: Sequence[DenseSpec | MoESpec], names: TensorNames
) -> ModelSpec:
    """A model of both kinds of attention with these feed-forward halves, layer by layer."""
    common.refuse_unsupported(config)
    attentions: dict[str, AttentionSpec | DeltaNetSpec] = {
        common.FULL: _attention(config),
        RECURRENT: _delta_net(config),
    }
    layers = tuple(
        LayerSpec(attentions[kind], ffn)
        for kind, ffn in zip(_layer_kinds(config), ffns, strict=True)
    )
    spec = common.model_spec(config, architecture, layers, names, default_eps=1e-6)
    return replace(spec, norm=replace(spec.norm, unit_offset=True))


def _layer_kinds(config: Config) -> list[str]:
    """As listed, else the last of each interval sees all positions."""
    interval = config.positive("full_attention_interval", default=4)
    layers = range(1, config.positive("num_hidden_layers") + 1)
    default = [RECURRENT if layer % interval else common.FULL for layer in layers]
    kinds = common.layer_kinds(config, (common.FULL, RECURRENT), default)
    if common.FULL not in kinds:
        raise config.fail(
            "layer_types", f"but without {common.FULL} there is no KV cache to plan for"
        )
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


def moe_spec(config: Config) -> MoESpec:
    """Experts beside a gated shared one."""
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
