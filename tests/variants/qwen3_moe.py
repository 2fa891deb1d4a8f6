"""Shapes of Qwen3-MoE."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant, old_rope

_QWEN = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}


def old_qwen3(config: Json) -> Json:
    """As `old_rope`; num_experts also went by this name."""
    return {**old_rope(config), "num_experts": config.pop("num_local_experts")}


VARIANTS: Mapping[str, Variant] = {
    "gqa": Variant({**_QWEN, "num_key_value_heads": 2, "head_dim": 16, "norm_topk_prob": True}),
    "mha_tied_old": Variant(
        {
            **_QWEN,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "num_experts_per_tok": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        old_qwen3,
    ),
    "dense_between": Variant(
        {
            **_QWEN,
            "num_hidden_layers": 5,
            "num_key_value_heads": 1,
            "mlp_only_layers": [0],
            "decoder_sparse_step": 2,
            "attention_bias": True,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 8,
        }
    ),
}
