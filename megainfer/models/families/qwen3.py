"""Qwen3, dense: per-head norms of q and k; a layer's network is its only expert."""

from megainfer.models import common, dense
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import AttentionSpec, ModelSpec, QkNorm

ARCHITECTURE = "Qwen3ForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen3ForCausalLM folder."""
    common.refuse_unsupported(config)
    layers = [_attention(config, window) for window in dense.windows(config)]
    return dense.read_spec(config, ARCHITECTURE, layers)


def _attention(config: Config, window: int | None) -> AttentionSpec:
    heads = config.positive("num_attention_heads")
    bias = config.flag("attention_bias", False)
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=heads),
        head_dim=config.positive("head_dim", default=128),
        rope=common.read_rope(config),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=QkNorm.HEAD,
        window=window,
    )


FAMILY = Family("Qwen3, dense", "Qwen3-0.6B to 32B", (ARCHITECTURE,), read_spec)
