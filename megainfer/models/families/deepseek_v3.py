"""DeepSeek-V3, Kimi-K2: latent attention and a sigmoid router with a bias that only chooses."""

from megainfer.models import common, latent
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import ModelSpec

ARCHITECTURE = "DeepseekV3ForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a DeepseekV3ForCausalLM folder.

    The layers for predicting several tokens at once, which are stored behind the others, are not
    read.
    """
    common.refuse_unsupported(config)
    layers = latent.layers(config, latent.read_attention(config), latent.sigmoid_moe(config))
    return common.model_spec(config, ARCHITECTURE, layers, latent.NAMES, default_eps=1e-6)


FAMILY = Family(
    "DeepSeek-V3",
    "DeepSeek-V3, R1, V3.1; Kimi-K2",
    ("DeepseekV3ForCausalLM", "KimiK2ForCausalLM"),
    read_spec,
)
