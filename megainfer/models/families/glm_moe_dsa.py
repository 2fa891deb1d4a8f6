"""GLM-5: DeepSeek-V3.2's attention, its indexer's rotated channels in pairs."""

from megainfer.models.config import Config
from megainfer.models.families import deepseek_v32
from megainfer.models.family import Family
from megainfer.models.spec import ModelSpec

ARCHITECTURE = "GlmMoeDsaForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a GlmMoeDsaForCausalLM folder.

    Raises ModelError where layers share what an indexer has chosen.
    """
    for key in ("index_topk_pattern", "index_topk_freq"):
        if config.values.get(key) not in (None, 1) and config.values.get("indexer_types") is None:
            raise config.fail(key, "but layers that share an indexer's choice are not supported")
    return deepseek_v32.sparse_spec(config, ARCHITECTURE, interleaved=True, default_eps=1e-5)


FAMILY = Family("GLM-5", "GLM-5", (ARCHITECTURE,), read_spec)
