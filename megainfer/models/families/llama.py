"""Llama 2 and 3, dense: a layer's network is its only expert."""

from megainfer.models import common, dense
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import ModelSpec

ARCHITECTURE = "LlamaForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a LlamaForCausalLM folder."""
    common.refuse_unsupported(config)
    layers = (common.grouped_heads(config),) * config.positive("num_hidden_layers")
    return dense.read_spec(config, ARCHITECTURE, layers, config.flag("mlp_bias", False))


FAMILY = Family("Llama, dense", "Llama 2, 3.1, 3.3, SmolLM2", (ARCHITECTURE,), read_spec)
