"""Shapes of OLMoE."""

from collections.abc import Mapping

from tests.support.model_variant import Variant, old_rope

VARIANTS: Mapping[str, Variant] = {
    "mha": Variant({"num_experts": 8, "num_experts_per_tok": 3}, old_rope),
    "gqa_clip_tied": Variant(
        {
            "num_key_value_heads": 2,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "clip_qkv": 0.8,
            "tie_word_embeddings": True,
            "norm_topk_prob": True,
        }
    ),
    "bias_deep": Variant(
        {
            "num_hidden_layers": 4,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "norm_topk_prob": True,
        }
    ),
}
