"""dots.llm1: DeepSeek-V3's router over ordinary attention, with windows if asked for."""

from dataclasses import replace

from megainfer.models import common, latent
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import AttentionSpec, DenseSpec, LayerSpec, ModelSpec, MoESpec, QkNorm

ARCHITECTURE = "Dots1ForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Dots1ForCausalLM folder."""
    common.refuse_unsupported(config)
    moe = latent.sigmoid_moe(_router_settings(config))
    layers = tuple(
        LayerSpec(_attention(config, window), _ffn(config, layer, moe))
        for layer, window in enumerate(_windows(config))
    )
    return common.model_spec(config, ARCHITECTURE, layers, latent.NAMES, default_eps=1e-6)


def _router_settings(config: Config) -> Config:
    """As DeepSeek-V3 writes them; first releases have the method under the key of the score."""
    own = {"norm_topk_prob": False, **config.values}
    if own.get("scoring_func") == "noaux_tc":
        own["scoring_func"] = "sigmoid"
    return Config(config.path, own)


def _windows(config: Config) -> list[int | None]:
    """Of each layer."""
    count, window = config.positive("num_hidden_layers"), common.sliding_window(config)
    first = config.whole("max_window_layers", 62)
    default = [common.SLIDING if layer >= first else common.FULL for layer in range(count)]
    kinds = common.layer_kinds(config, (common.FULL, common.SLIDING), default)
    return [window if kind == common.SLIDING else None for kind in kinds]


def _attention(config: Config, window: int | None) -> AttentionSpec:
    return replace(
        common.grouped_heads(config),
        qk_norm=QkNorm.HEAD,
        window=window,
    )


def _ffn(config: Config, layer: int, moe: MoESpec) -> MoESpec | DenseSpec:
    if layer >= config.whole("first_k_dense_replace", 0):
        return moe
    return DenseSpec(config.positive("intermediate_size"))


FAMILY = Family("dots.llm1", "dots.llm1.base, dots.llm1.inst", (ARCHITECTURE,), read_spec)
