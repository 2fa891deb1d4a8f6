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
    common.refuse_window(config, _window(config))
    attention = _attention(config)
    dense, moe = DenseSpec(config.positive("intermediate_size")), _moe(config)
    layers = tuple(
        LayerSpec(attention, moe if sparse else dense) for sparse in common.sparse_layers(config)
    )
    return common.model_spec(config, "Qwen2MoeForCausalLM", layers, TensorNames(), default_eps=1e-6)


def _window(config: Config) -> int | None:
    """The sliding window, in tokens, if some layer uses it.

    Which layers do is listed in layer_types; where that is absent, it is every second one of the
    first max_window_layers, beginning with the first, if use_sliding_window is set.
    """
    if not config.flag("use_sliding_window", False):
        return None
    kinds = config.values.get("layer_types")
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
            raise config.fail("layer_types", f"but must be a list of {' and '.join(known)}")
        in_use = "sliding_attention" in kinds
    else:
        in_use = config.integers("max_window_layers") != (0,)
    return config.positive("sliding_window", default=4096) if in_use else None


def _attention(config: Config) -> AttentionSpec:
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config),
        qkv_bias=config.flag("qkv_bias", True),
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
