"""Qwen3-Next: gated DeltaNet in three of four layers, gated softmax attention in the others."""

from megainfer.models import common
from megainfer.models.config import Config
from megainfer.models.names import TensorNames
from megainfer.models.spec import (
    AttentionSpec,
    DeltaNetSpec,
    DenseSpec,
    ExpertSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
    QkNorm,
    RouterSpec,
    SharedExpertSpec,
)

SOFTMAX, RECURRENT = "full_attention", "linear_attention"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Qwen3NextForCausalLM folder."""
    common.refuse_unsupported(config)
    attentions = {SOFTMAX: _attention(config), RECURRENT: _delta_net(config)}
    dense, moe = DenseSpec(config.positive("intermediate_size")), _moe(config)
    kinds = _layer_types(config)
    layers = tuple(
        LayerSpec(attentions[kind], moe if sparse else dense)
        for kind, sparse in zip(kinds, common.sparse_layers(config), strict=True)
    )
    norm = NormSpec(config.number("rms_norm_eps", 1e-6), unit_offset=True)
    return replace(common.model_spec(...))
