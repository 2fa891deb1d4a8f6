"""Llama 2 and 3, dense: a layer's network is its only expert."""

from megainfer.models import common, dense
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import AttentionSpec, ModelSpec

ARCHITECTURE = "LlamaForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a LlamaForCausalLM folder."""
    common.refuse_unsupported(config)
    layers = (_attention(config),) * config.positive("num_hidden_layers")
    return dense.read_spec(config, ARCHITECTURE, layers, config.flag("mlp_bias", False))


def _attention(config: Config) -> AttentionSpec:
    heads = config.positive("num_attention_heads")
    bias = config.flag("attention_bias", False)
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.positive("num_key_value_heads", default=heads),
        head_dim=common.head_dim(config),
        rope=common.read_rope(config),
        qkv_bias=bias,
        out_bias=bias,
    )


FAMILY = Family("Llama, dense", "Llama 2, 3.1, 3.3, SmolLM2", (ARCHITECTURE,), read_spec)
