"""Shapes of Granite-MoE with a shared expert."""

from collections.abc import Mapping

from tests.support.model_variant import Variant

_GRANITE = {"num_key_value_heads": 2, "num_local_experts": 6, "attention_multiplier": 0.3}

VARIANTS: Mapping[str, Variant] = {
    "shared": Variant({**_GRANITE, "shared_intermediate_size": 26, "residual_multiplier": 0.7}),
    "none_shared": Variant(
        {**_GRANITE, "shared_intermediate_size": 0, "logits_scaling": 3.0, "num_hidden_layers": 2}
    ),
}
