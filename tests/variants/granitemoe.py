"""Shapes of Granite-MoE."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

VARIANTS: Mapping[str, Variant] = {
    "multipliers": Variant(
        {
            "num_key_value_heads": 2,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "embedding_multiplier": 1.7,
            "attention_multiplier": 0.21,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.5,
            "tie_word_embeddings": True,
        }
    ),
    "bias_old": Variant(
        {
            "num_key_value_heads": 1,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_multiplier": 0.3,
            "attention_bias": True,
            "num_hidden_layers": 2,
        },
        old_rope,
    ),
}
