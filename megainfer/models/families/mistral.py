"""Mistral, dense: a layer's network is its only expert; the early ones have a sliding window."""

from megainfer.models import common, dense
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import AttentionSpec, ModelSpec

ARCHITECTURE = "MistralForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a MistralForCausalLM folder."""
    common.refuse_unsupported(config)
    common.layer_kinds(config, (common.FULL,), ())  # others are of Ministral, another class
    layers = (_attention(config),) * config.positive("num_hidden_layers")
    return dense.read_spec(config, ARCHITECTURE, layers)


def _attention(config: Config) -> AttentionSpec:
    heads = config.positive("num_attention_heads")
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=8),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config),
        # null means none, but a missing key what the first of them had
        window=common.sliding_window(config, None if "sliding_window" in config.values else 4096),
    )


FAMILY = Family("Mistral, dense", "Mistral 7B, Nemo, Small", (ARCHITECTURE,), read_spec)
