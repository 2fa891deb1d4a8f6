"""Shapes of Llama, dense."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

VARIANTS: Mapping[str, Variant] = {
    "gqa_old": Variant({"num_key_value_heads": 2}, old_rope),
    "llama3_biased": Variant(
        {
            "num_key_value_heads": 1,
            "head_dim": 20,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "num_hidden_layers": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        }
    ),
}
