"""Shapes of Qwen2, dense."""

from collections.abc import Mapping

from tests.support.model_variant import Variant

VARIANTS: Mapping[str, Variant] = {
    "windows_last": Variant(
        {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
        }
    ),
}
