"""Shapes of DeepSeek-V2."""

from collections.abc import Mapping

from model_variant import Variant, old_rope

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

VARIANTS: Mapping[str, Variant] = {
    "lite": Variant({**_SMALL, "q_lora_rank": None}, old_rope),
}
