"""Shapes of gpt-oss."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 8,
}
_SMALL = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 9,
    "rope_parameters": _YARN,
}


def _released(config: Json) -> Json:
    """As gpt-oss was published."""
    rope = config.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    return {**config, "rope_theta": theta, "rope_scaling": rope, "experts_per_token": 3}


VARIANTS: Mapping[str, Variant] = {
    "alternating": Variant({**_SMALL, "num_hidden_layers": 4}, _released),
    "mqa_odd": Variant(
        {
            **_SMALL,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "num_experts_per_tok": 1,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "sliding_window": 2,
            "swiglu_limit": 1.5,
        }
    ),
}
