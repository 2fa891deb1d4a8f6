"""DeepSeek-V2: latent attention, a softmax router by groups, shared experts, dense first layers."""

from megainfer.models import common, latent
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import (
    ExpertGroups,
    ExpertSpec,
    GroupScore,
    ModelSpec,
    MoESpec,
    RouterSpec,
)

ARCHITECTURE = "DeepseekV2ForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a DeepseekV2ForCausalLM folder."""
    common.refuse_unsupported(config)
    layers = latent.layers(config, latent.read_attention(config), _moe(config))
    return common.model_spec(config, ARCHITECTURE, layers, latent.NAMES, default_eps=1e-6)


def _moe(config: Config) -> MoESpec:
    return MoESpec(
        router=_router(config),
        expert=ExpertSpec(config.positive("moe_intermediate_size")),
        shared=latent.shared(config),
    )


def _router(config: Config) -> RouterSpec:
    config.expect("scoring_func", "softmax")
    if config.flag("norm_topk_prob", False):
        raise config.fail("norm_topk_prob", "which DeepSeek-V2's router has no agreed meaning for")
    return RouterSpec(
        num_experts=config.positive("n_routed_experts", "num_experts"),
        top_k=config.positive("num_experts_per_tok"),
        normalise=False,
        rounded=False,
        groups=_groups(config),
        scale=config.number("routed_scaling_factor", 1.0),
        wide=True,
    )


def _groups(config: Config) -> ExpertGroups | None:
    method = config.values.get("topk_method", "greedy")
    if method == "greedy":
        return None
    if method == "group_limited_greedy":
        return latent.groups(config, GroupScore.MAX)
    raise config.fail(
        "topk_method", "which is not supported; supported: greedy, group_limited_greedy"
    )


FAMILY = Family(
    "DeepSeek-V2", "DeepSeek-V2, V2-Lite, V2.5, Coder-V2", ("DeepseekV2ForCausalLM",), read_spec
)
