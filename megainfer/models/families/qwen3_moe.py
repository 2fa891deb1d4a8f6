"""Qwen3-MoE: per-head norms of q and k, dense layers in between where the config asks for them."""

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
    QkNorm,
    RouterSpec,
)


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen3MoeForCausalLM folder."""
    common.refuse_unsupported(config)
    attention = _attention(config)
    dense, moe = DenseSpec(config.positive("intermediate_size")), _moe(config)
    layers = tuple(
        LayerSpec(attention, moe if sparse else dense) for sparse in common.sparse_layers(config)
    )
    return common.model_spec(config, "Qwen3MoeForCausalLM", layers, TensorNames(), default_eps=1e-6)


def _attention(config: Config) -> AttentionSpec:
    bias = config.flag("attention_bias", False)
    windowed = config.flag("use_sliding_window", False)
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QkNorm.HEAD,
        window=common.sliding_window(config, 4096) if windowed else None,
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            # transformers 5 renames num_experts to num_local_experts when it writes this family.
            num_experts=config.positive("num_experts", "num_local_experts"),
            top_k=config.positive("num_experts_per_tok"),
            normalise=config.flag("norm_topk_prob", False),
            rounded=True,
        ),
        expert=ExpertSpec(config.positive("moe_intermediate_size")),
    )


FAMILY = Family(
    "Qwen3-MoE", "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder", ("Qwen3MoeForCausalLM",), read_spec
)
