"""Shapes of Hunyuan."""

from collections.abc import Mapping

from tests.support.model_variant import Json, Variant


def _old(config: Json) -> Json:
    """As its makers wrote it: numbers for each layer, an alpha in rope_scaling."""
    layers, rope = config["num_hidden_layers"], config.pop("rope_parameters")
    return {
        **config,
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": {"type": rope.pop("rope_type"), **rope},
        "moe_topk": [config["moe_topk"]] * layers,
        "moe_intermediate_size": [config["intermediate_size"]] * layers,
        "num_shared_expert": [1] * layers,
        "use_qk_norm": True,
        "use_cla": False,
    }


VARIANTS: Mapping[str, Variant] = {
    "alpha": Variant(
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_experts": 7,
            "moe_topk": 3,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 1e4,
                "factor": 1.0,
                "alpha": 99.0,
            },
        },
        _old,
    ),
    "bias_top1": Variant(
        {
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "head_dim": 10,
            "num_experts": 4,
            "moe_topk": 1,
            "attention_bias": True,
            "tie_word_embeddings": True,
        }
    ),
}
