"""Each family's own router in transformers, beside the spec that is to be it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from megainfer.models.spec import ExpertGroups, GroupScore, RouterScore, RouterSpec

TOKENS, HIDDEN = 64, 20
VOCABULARY = 30

Answer = tuple[Tensor, Tensor]  # weights and ids [T, K]


def last_two(router: Any, hidden: Tensor) -> Answer:
    return router(hidden)[1:]


def with_selection_bias(router: Any, hidden: Tensor) -> Answer:
    return router(hidden, router.selection_bias)[1:]


def hashed(router: Any, hidden: Tensor) -> Answer:
    return router(hidden, token_ids())[1:]


def dense_scores(router: Any, hidden: Tensor) -> Answer:
    """Llama 4 gives scores of all experts, zeros of those that aren't chosen."""
    return router(hidden)[0].topk(router.top_k)


def dbrx(block: Any, hidden: Tensor) -> Answer:
    return block.route_tokens_to_experts(block.router(hidden))


def token_ids() -> Tensor:
    return torch.arange(TOKENS) % VOCABULARY


@dataclass(frozen=True)
class Case:
    """A router of transformers and the spec that is to be it.

    module: under transformers.models, with the class. ask: what gives its weights and ids. bias,
    router: the attributes that hold the selection bias and the linear layer, if there are such.
    """

    module: str
    settings: Mapping[str, Any]
    spec: RouterSpec
    ask: Callable[[Any, Tensor], Answer] = last_two
    bias: str | None = None
    router: str | None = None

    def build(self, dtype: torch.dtype) -> Any:
        path, name = self.module.rsplit(".", 1)
        family = path.split(".")[0]
        module = import_module(f"transformers.models.{path}")
        router = getattr(module, name)(_config(family, self.settings)).to(dtype).eval()
        _fill(router)
        if self.bias is None and self.spec.selection_bias:
            router.selection_bias = 0.5 * torch.randn(self.spec.num_experts)
        return router

    def selection_bias(self, router: Any) -> Tensor | None:
        if not self.spec.selection_bias:
            return None
        value = router
        for part in (self.bias or "selection_bias").split("."):
            value = getattr(value, part)
        return value.flatten().float()


def _config(family: str, settings: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(family, hidden_size=HIDDEN, num_attention_heads=2, **settings)


def _fill(module: Any) -> None:
    tensors = [*module.parameters(), *module.buffers()]
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.copy_(0.5 * torch.randn(tensor.shape))


def _v3_like(module: str, normalise: bool, groups: ExpertGroups, experts_key: str) -> Case:
    return Case(
        module,
        {
            experts_key: 12,
            "num_experts_per_tok": 3,
            "n_group": groups.count,
            "topk_group": groups.kept,
            "norm_topk_prob": normalise,
            "routed_scaling_factor": 2.5,
        },
        RouterSpec(
            12,
            3,
            normalise,
            False,
            RouterScore.SIGMOID,
            selection_bias=True,
            groups=groups,
            epsilon=1e-20,
            scale=2.5,
            wide=True,
        ),
        bias="e_score_correction_bias",
    )


_TWO_OF_FOUR = ExpertGroups(4, 2, GroupScore.TOP2_SUM)
_ONE_GROUP = ExpertGroups(1, 1, GroupScore.TOP2_SUM)
_V2 = {"n_routed_experts": 12, "num_experts_per_tok": 3, "routed_scaling_factor": 16.0}
_V4 = {"num_local_experts": 9, "num_experts_per_tok": 3, "scoring_func": "sqrtsoftplus"}
_V4_SPEC = {"score": RouterScore.SQRT_SOFTPLUS, "epsilon": 1e-20, "scale": 1.5}
_QWEN = {"num_experts": 9, "num_experts_per_tok": 4}
_LOCAL = {"num_local_experts": 9, "num_experts_per_tok": 3}

CASES = {
    "mixtral": Case(
        "mixtral.modeling_mixtral.MixtralTopKRouter", _LOCAL, RouterSpec(9, 3, True, False)
    ),
    "olmoe": Case("olmoe.modeling_olmoe.OlmoeTopKRouter", _QWEN, RouterSpec(9, 4, False, True)),
    "qwen2": Case(
        "qwen2_moe.modeling_qwen2_moe.Qwen2MoeTopKRouter",
        {**_QWEN, "norm_topk_prob": False},
        RouterSpec(9, 4, False, True),
    ),
    "qwen3": Case(
        "qwen3_moe.modeling_qwen3_moe.Qwen3MoeTopKRouter",
        {**_QWEN, "norm_topk_prob": True},
        RouterSpec(9, 4, True, True),
    ),
    "v2 greedy": Case(
        "deepseek_v2.modeling_deepseek_v2.DeepseekV2TopkRouter",
        {**_V2, "topk_method": "greedy"},
        RouterSpec(12, 3, False, False, scale=16.0, wide=True),
    ),
    "v2 groups": Case(
        "deepseek_v2.modeling_deepseek_v2.DeepseekV2TopkRouter",
        {**_V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        RouterSpec(
            12,
            3,
            False,
            False,
            groups=ExpertGroups(4, 2, GroupScore.MAX),
            scale=16.0,
            wide=True,
        ),
    ),
    "v3": _v3_like(
        "deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter",
        True,
        _TWO_OF_FOUR,
        "n_routed_experts",
    ),
    "v3 one group": _v3_like(
        "deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter",
        False,
        _ONE_GROUP,
        "n_routed_experts",
    ),
    "glm4": _v3_like(
        "glm4_moe.modeling_glm4_moe.Glm4MoeTopkRouter", True, _TWO_OF_FOUR, "n_routed_experts"
    ),
    "v4": Case(
        "deepseek_v4.modeling_deepseek_v4.DeepseekV4TopKRouter",
        _V4,
        RouterSpec(9, 3, True, False, selection_bias=True, **_V4_SPEC),
        bias="e_score_correction_bias",
    ),
    "v4 hashed": Case(
        "deepseek_v4.modeling_deepseek_v4.DeepseekV4HashRouter",
        {**_V4, "vocab_size": VOCABULARY},
        RouterSpec(9, 3, True, False, hashed=True, **_V4_SPEC),
        hashed,
    ),
    "gpt-oss": Case(
        "gpt_oss.modeling_gpt_oss.GptOssTopKRouter",
        _LOCAL,
        RouterSpec(9, 3, False, True, RouterScore.LOGIT, bias=True),
    ),
    "granite": Case(
        "granitemoe.modeling_granitemoe.GraniteMoeTopKRouter",
        _LOCAL,
        RouterSpec(9, 3, False, True, RouterScore.LOGIT),
    ),
    "dbrx": Case(
        "dbrx.modeling_dbrx.DbrxFFN",
        {
            "d_model": HIDDEN,
            "ffn_config": {
                "hidden_size": HIDDEN,
                "ffn_hidden_size": 4,
                "moe_num_experts": 9,
                "moe_top_k": 3,
                "moe_normalize_expert_weights": 1.0,
            },
        },
        RouterSpec(9, 3, True, False),
        dbrx,
        router="router.layer",
    ),
    "phi": Case(
        "phimoe.modeling_phimoe.PhimoeTopKRouter",
        {"num_local_experts": 9, "num_experts_per_tok": 2, "router_jitter_noise": 0.3},
        RouterSpec(9, 2, False, False, RouterScore.SPARSEMIXER, jitter=0.3),
    ),
    "ernie": Case(
        "ernie4_5_moe.modeling_ernie4_5_moe.Ernie4_5_MoeTopKRouter",
        {"moe_num_experts": 9, "moe_k": 3, "moe_norm_min": 0.4},
        RouterSpec(9, 3, True, True, selection_bias=True, least_sum=0.4, wide=True),
        bias="moe_statics.e_score_correction_bias",
    ),
    "hunyuan": Case(
        "hunyuan_v1_moe.modeling_hunyuan_v1_moe.HunYuanMoEV1Gate",
        {"num_experts": 9, "moe_topk": 3},
        RouterSpec(9, 3, True, True),
        router="wg",
    ),
    "minimax": Case(
        "minimax_m2.modeling_minimax_m2.MiniMaxM2TopKRouter",
        _LOCAL,
        RouterSpec(9, 3, True, False, RouterScore.SIGMOID, selection_bias=True),
        with_selection_bias,
    ),
    "llama4": Case(
        "llama4.modeling_llama4.Llama4Router",
        _LOCAL,
        RouterSpec(9, 3, False, True, RouterScore.SIGMOID),
        dense_scores,
    ),
}
