"""Shapes of Ernie 4.5."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

_ERNIE = {"moe_intermediate_size": 24, "moe_num_experts": 9, "moe_k": 3}

VARIANTS: Mapping[str, Variant] = {
    "dense_first": Variant(
        {**_ERNIE, "num_key_value_heads": 2, "moe_num_shared_experts": 2, "moe_norm_min": 0.9}
    ),
    "alternating_untied_old": Variant(
        {
            **_ERNIE,
            "num_hidden_layers": 5,
            "num_key_value_heads": 1,
            "moe_num_shared_experts": 0,
            "moe_layer_start_index": 0,
            "moe_layer_end_index": 3,
            "moe_layer_interval": 2,
            "tie_word_embeddings": False,
        },
        old_rope,
    ),
}
