"""GLM-4.7-Flash: latent attention and DeepSeek-V3's router, layers by a list of their kinds."""

from megainfer.models import common, latent
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import DenseSpec, LayerSpec, ModelSpec

ARCHITECTURE = "Glm4MoeLiteForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Glm4MoeLiteForCausalLM folder."""
    common.refuse_unsupported(config)
    attention = latent.read_attention(config)
    moe, dense = latent.sigmoid_moe(config), DenseSpec(config.positive("intermediate_size"))
    sparse_layers = latent.sparse_by_type(config, dense_first=1)
    layers = tuple(LayerSpec(attention, moe if sparse else dense) for sparse in sparse_layers)
    return common.model_spec(config, ARCHITECTURE, layers, latent.NAMES, default_eps=1e-5)


FAMILY = Family("GLM-4.7-Flash", "GLM-4.7-Flash", ("Glm4MoeLiteForCausalLM",), read_spec)
