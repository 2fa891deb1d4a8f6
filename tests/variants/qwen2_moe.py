"""Shapes of Qwen2-MoE."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

_QWEN = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}

VARIANTS: Mapping[str, Variant] = {
    "gqa": Variant(
        {**_QWEN, "num_key_value_heads": 2, "shared_expert_intermediate_size": 32},
        old_rope,
    ),
    "mha_tied": Variant(
        {
            **_QWEN,
            "num_key_value_heads": 4,
            "shared_expert_intermediate_size": 56,
            "tie_word_embeddings": True,
            "norm_topk_prob": True,
            "num_experts": 5,
            "num_experts_per_tok": 4,
        }
    ),
    "dense_between": Variant(
        {
            **_QWEN,
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 2,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 3,
        }
    ),
}
