"""Shapes of DeepSeek-V2."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

_SMALL = {
    "kv_lora_rank": 20,
    "q_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}

VARIANTS: Mapping[str, Variant] = {
    "yarn_groups": Variant(
        {
            **_SMALL,
            "n_routed_experts": 12,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 2.5,
            "rope_parameters": _YARN,
        }
    ),
    "lite": Variant({**_SMALL, "q_lora_rank": None, "routed_scaling_factor": 0.7}, old_rope),
    "bias_tied_top_1": Variant(
        {
            **_SMALL,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "num_attention_heads": 3,
            "first_k_dense_replace": 0,
            "n_shared_experts": 1,
            "n_routed_experts": 5,
            "num_experts_per_tok": 1,
            "num_hidden_layers": 2,
        }
    ),
}
