"""Shapes of DeepSeek-V3.2, contexts beyond what its indexer keeps."""

from collections.abc import Mapping

from tests.support.model_variant import Variant

SMALL = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 22,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Many heads, since where all are below 0 positions tie.
    "index_n_heads": 12,
    "index_head_dim": 14,
    "index_topk": 9,
}

VARIANTS: Mapping[str, Variant] = {
    "nine_positions": Variant(SMALL),
    "more_than_there_are": Variant(
        {**SMALL, "index_topk": 64, "num_hidden_layers": 2, "attention_bias": True}
    ),
}
