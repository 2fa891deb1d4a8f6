"""Shapes of Llama 4's language model."""

from collections.abc import Mapping

from tests.support.model_variant import Variant

_SMALL = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 5,
    "intermediate_size": 24,
    "intermediate_size_mlp": 44,
    "attention_chunk_size": 7,
    "floor_scale": 5,
    "attn_scale": 0.6,
}

VARIANTS: Mapping[str, Variant] = {
    "scout": Variant(
        {
            **_SMALL,
            "num_hidden_layers": 4,
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
    "maverick": Variant(
        {
            **_SMALL,
            "num_hidden_layers": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
            "use_qk_norm": False,
            "attention_bias": True,
            "num_experts_per_tok": 2,
        }
    ),
}
