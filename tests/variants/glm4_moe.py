"""Shapes of GLM-4.5."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant

_SMALL = {
    "num_key_value_heads": 2,
    "head_dim": 20,
    "moe_intermediate_size": 24,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}


def _released(config: Json) -> Json:
    """As GLM-4.5 was published, before transformers 5."""
    rope = config.pop("rope_parameters")
    return {
        **config,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "torch_dtype": config.pop("dtype"),
    }


VARIANTS: Mapping[str, Variant] = {
    "qk_norm": Variant({**_SMALL, "use_qk_norm": True}, _released),
    "bias_groups": Variant(
        {
            **_SMALL,
            "attention_bias": True,
            "n_group": 3,
            "topk_group": 2,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "first_k_dense_replace": 2,
            "partial_rotary_factor": 0.3,
        }
    ),
}
