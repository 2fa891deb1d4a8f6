"""Shapes of Mistral, dense."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

VARIANTS: Mapping[str, Variant] = {
    "window": Variant({"num_key_value_heads": 2, "head_dim": 14, "sliding_window": 5}, old_rope),
    "no_window": Variant(
        {"num_key_value_heads": 4, "sliding_window": None, "num_hidden_layers": 2}
    ),
}
