"""Shapes of dots.llm1."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

_DOTS = {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
}

VARIANTS: Mapping[str, Variant] = {
    "windows": Variant(
        {
            **_DOTS,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
    ),
    "bias_groups": Variant(
        {
            **_DOTS,
            "num_hidden_layers": 2,
            "n_group": 4,
            "topk_group": 2,
            "attention_bias": True,
            "head_dim": 10,
        },
        old_rope,
    ),
}
