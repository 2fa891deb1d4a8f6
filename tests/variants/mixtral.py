"""Shapes of Mixtral."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

VARIANTS: Mapping[str, Variant] = {
    "gqa": Variant({"num_key_value_heads": 2, "num_local_experts": 8}),
    "mha_tied_old": Variant(
        {
            "num_key_value_heads": 4,
            "num_local_experts": 4,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
        old_rope,
    ),
    "mqa_wide_heads": Variant(
        {
            "num_key_value_heads": 1,
            "head_dim": 24,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "sliding_window": 11,
        }
    ),
}
