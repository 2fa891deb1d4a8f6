"""DeepSeek-V3.2: DeepSeek-V3 whose queries attend to the positions that an indexer chooses."""

from dataclasses import replace

from megainfer.models import common, latent
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "DeepseekV32ForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a DeepseekV32ForCausalLM folder."""
    return sparse_spec(config, ARCHITECTURE, interleaved=False, default_eps=1e-6)


def sparse_spec(
    config: Config, architecture: str, *, interleaved: bool, default_eps: float
) -> ModelSpec:
    """interleaved: the indexer's rotated channels lie in pairs, else in halves."""
    common.refuse_unsupported(config)
    _refuse_other_layers(config)
    indexer = latent.read_indexer(config, interleaved)
    attention = replace(latent.read_attention(config), indexer=indexer)
    moe, dense = latent.sigmoid_moe(config), DenseSpec(config.positive("intermediate_size"))
    sparse_layers = latent.sparse_by_type(config, config.whole("first_k_dense_replace", 3))
    layers = tuple(LayerSpec(attention, moe if sparse else dense) for sparse in sparse_layers)
    return common.model_spec(config, architecture, layers, latent.NAMES, default_eps)


def _refuse_other_layers(config: Config) -> None:
    """Raise ModelError where some layers attend in another way."""
    for key, only in (("layer_types", "indexed_attention"), ("indexer_types", "full")):
        kinds = config.values.get(key)
        if kinds is not None and (not isinstance(kinds, list) or any(k != only for k in kinds)):
            raise config.fail(key, f"but only layers of type {only} are supported")


FAMILY = Family("DeepSeek-V3.2", "DeepSeek-V3.2-Exp, V3.2", (ARCHITECTURE,), read_spec)
