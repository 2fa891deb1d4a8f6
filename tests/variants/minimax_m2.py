"""Shapes of MiniMax-M2."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant

_SMALL = {"num_key_value_heads": 2, "head_dim": 20, "num_local_experts": 7}


def _released(config: Json) -> Json:
    """As MiniMax-M2 was published: rotated channels by their number."""
    rope = config.pop("rope_parameters")
    return {
        **config,
        "rope_theta": rope["rope_theta"],
        "rotary_dim": int(config["head_dim"] * rope["partial_rotary_factor"]),
        "qk_norm_type": "per_layer",
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "attn_type_list": [1] * config["num_hidden_layers"],
    }


VARIANTS: Mapping[str, Variant] = {
    "partial": Variant({**_SMALL, "num_experts_per_tok": 3, "rotary_dim": 10}, _released),
    "whole_top1": Variant({**_SMALL, "num_experts_per_tok": 1, "num_hidden_layers": 2}),
}
