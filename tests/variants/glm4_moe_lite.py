"""Shapes of GLM-4.7-Flash."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

_SMALL = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 14,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 18,
    "moe_intermediate_size": 24,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
}

VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(_SMALL, old_rope),
    "groups_dense_between": Variant(
        {
            **_SMALL,
            "num_hidden_layers": 4,
            "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
            "n_group": 2,
            "topk_group": 1,
            "attention_bias": True,
            "tie_word_embeddings": True,
        }
    ),
}
