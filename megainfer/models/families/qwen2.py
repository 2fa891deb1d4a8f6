"""Qwen2 and Qwen2.5, dense: biases on q, k and v; a layer's network is its only expert."""

from megainfer.models import common, dense
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import AttentionSpec, ModelSpec

ARCHITECTURE = "Qwen2ForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen2ForCausalLM folder."""
    common.refuse_unsupported(config)
    layers = [_attention(config, window) for window in dense.windows(config)]
    return dense.read_spec(config, ARCHITECTURE, layers)


def _attention(config: Config, window: int | None) -> AttentionSpec:
    heads = config.positive("num_attention_heads")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=heads),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config),
        qkv_bias=True,
        window=window,
    )


FAMILY = Family("Qwen2, dense", "Qwen2, Qwen2.5, QwQ", (ARCHITECTURE,), read_spec)
