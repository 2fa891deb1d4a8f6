"""Shapes of Phi-3.5-MoE."""

from collections.abc import Mapping

from tests.support.model_variant import Variant

_WIDE = {"router_jitter_noise": 0.2, "attention_bias": True, "lm_head_bias": True}

VARIANTS: Mapping[str, Variant] = {
    "longrope": Variant(
        {
            **_WIDE,
            "num_key_value_heads": 2,
            "num_local_experts": 9,
            # As long as the context: transformers never takes this family's long factors.
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.3, 1.9, 2.5, 3.0, 4.0],
                "long_factor": [2.0, 3.0, 5.0, 7.0, 9.0, 11.0],
                "short_mscale": 1.2,
                "long_mscale": 1.4,
                "original_max_position_embeddings": 256,
            },
        }
    ),
    "plain": Variant(
        {
            "num_key_value_heads": 4,
            "num_local_experts": 5,
            "router_jitter_noise": 0.4,
            "num_hidden_layers": 2,
        }
    ),
}
