"""Shapes of Qwen3-Next."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant

SIZES = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
}


def by_interval(config: Json) -> Json:
    """As the first checkpoints say it: every so many layers, instead of each layer's kind."""
    assert config.pop("layer_types") == ["linear_attention", "full_attention"] * 2
    return {**config, "full_attention_interval": 2}


VARIANTS: Mapping[str, Variant] = {
    "grouped": Variant({**SIZES, "layer_types": ["linear_attention"] * 2 + ["full_attention"]}),
    # A head each, odd sizes, two taps, a dense layer at the end after the last experts.
    "odd_dense_last": Variant(
        {
            **SIZES,
            "num_hidden_layers": 4,
            "full_attention_interval": 2,
            "mlp_only_layers": [3],
            "num_experts_per_tok": 1,
            "norm_topk_prob": False,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 5,
            "linear_value_head_dim": 7,
            "linear_conv_kernel_dim": 2,
            "attention_bias": True,
        },
        by_interval,
    ),
    # Wider than a vector of any level, many values a key, softmax first.
    "wide_tied": Variant(
        {
            **SIZES,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "linear_attention"],
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 20,
            "linear_value_head_dim": 40,
            "partial_rotary_factor": 0.5,
        }
    ),
}
