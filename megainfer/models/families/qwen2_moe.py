"""Qwen2-MoE: biases on q, k and v, and a shared expert behind a sigmoid gate."""

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


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen2MoeForCausalLM folder."""
    common.refuse_unsupported(config)
    dense, moe = DenseSpec(config.positive("intermediate_size")), _moe(config)
    layers = tuple(
        LayerSpec(_attention(config, kind), moe if sparse else dense)
        for kind, sparse in zip(_kinds(config), common.sparse_layers(config), strict=True)
    )
    return common.model_spec(config, "Qwen2MoeForCausalLM", layers, TensorNames(), default_eps=1e-6)


def _kinds(config: Config) -> list[str]:
    """Of each layer: where layer_types is absent, every second one of the first max_window_layers,
    beginning with the first, has a window, if use_sliding_window is set."""
    windowed = config.flag("use_sliding_window", False)
    last = config.whole("max_window_layers", 28) if windowed else 0
    layers = range(config.positive("num_hidden_layers"))
    default = [
        common.SLIDING if layer < last and layer % 2 == 0 else common.FULL for layer in layers
    ]
    return common.layer_kinds(config, (common.FULL, common.SLIDING), default)


def _attention(config: Config, kind: str) -> AttentionSpec:
    windowed = kind == common.SLIDING and config.flag("use_sliding_window", False)
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config),
        qkv_bias=config.flag("qkv_bias", True),
        window=common.sliding_window(config, 4096) if windowed else None,
    )


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=config.positive("num_experts"),
            top_k=config.positive("num_experts_per_tok"),
            normalise=config.flag("norm_topk_prob", False),
            rounded=True,
        ),
        expert=ExpertSpec(config.positive("moe_intermediate_size")),
        shared=SharedExpertSpec(config.positive("shared_expert_intermediate_size")),
    )


FAMILY = Family(
    "Qwen2-MoE", "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", ("Qwen2MoeForCausalLM",), read_spec
)
