"""Shapes of DBRX."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant


def _old(config: Json) -> Json:
    """As its makers wrote it."""
    del config["rope_parameters"]
    return {**config, "torch_dtype": config.pop("dtype")}


# Under its own name: transformers takes the experts' from it before it knows others.
_DBRX = {"d_model": 48}

VARIANTS: Mapping[str, Variant] = {
    "gqa_clip": Variant(
        {
            **_DBRX,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.9, "rope_theta": 5e5},
            "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 7, "moe_top_k": 3},
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        }
    ),
    "unnormalised": Variant(
        {
            **_DBRX,
            "num_hidden_layers": 2,
            # The only theta that transformers takes from there.
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {
                "ffn_hidden_size": 33,
                "moe_num_experts": 4,
                "moe_top_k": 2,
                "moe_normalize_expert_weights": None,
            },
        },
        _old,
    ),
}
