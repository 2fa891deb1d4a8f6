"""Shapes of Qwen3.5-MoE's language model."""

from collections.abc import Mapping

from tests.support.model_variant import Variant
from tests.variants.qwen3_next import SIZES

VARIANTS: Mapping[str, Variant] = {
    "grouped": Variant({**SIZES, "layer_types": ["linear_attention"] * 2 + ["full_attention"]}),
    "tied_one_key_head": Variant(
        {
            **SIZES,
            "num_hidden_layers": 4,
            "full_attention_interval": 2,
            "tie_word_embeddings": True,
            "num_experts_per_tok": 3,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 5,
            "linear_conv_kernel_dim": 3,
        }
    ),
}
