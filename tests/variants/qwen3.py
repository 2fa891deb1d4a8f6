"""Shapes of Qwen3, dense."""

from collections.abc import Mapping

from tests.support.model_variant import Variant

VARIANTS: Mapping[str, Variant] = {
    "yarn_tied": Variant(
        {
            "num_key_value_heads": 2,
            "head_dim": 20,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        }
    ),
}
