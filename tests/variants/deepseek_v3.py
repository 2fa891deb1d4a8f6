"""Shapes of DeepSeek-V3 and of Kimi-K2, whose groups are all kept."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant

_SMALL = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 22,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "n_routed_experts": 12,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}


def _kimi(config: Json) -> Json:
    """As Kimi-K2 writes it, but for its model_type, which transformers does not know."""
    rope = config.pop("rope_parameters")
    return {
        **config,
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": {"type": rope.pop("rope_type"), **rope},
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
    }


VARIANTS: Mapping[str, Variant] = {
    "groups": Variant(_SMALL),
    "kimi": Variant(
        {
            **_SMALL,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5e4,
                "factor": 32.0,
                "original_max_position_embeddings": 8,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
        _kimi,
    ),
    "halves_unnormalised": Variant(
        {
            **_SMALL,
            "q_lora_rank": None,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "attention_bias": True,
            "routed_scaling_factor": 1.0,
            "num_hidden_layers": 2,
            "num_experts_per_tok": 8,
        }
    ),
}
