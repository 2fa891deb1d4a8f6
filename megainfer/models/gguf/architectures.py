"""llama.cpp's architectures that are served, each with how its metadata becomes a config.json.

What a file doesn't say is what llama.cpp computes: its model graphs have it fixed for each
architecture, as whether chosen weights are normalised.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megainfer.models.gguf.names import AFTER_ATTENTION, NAMES
from megainfer.models.gguf.settings import (
    SIGMOID,
    SOFTMAX,
    SOFTMAX_OF_CHOSEN,
    GgufModel,
    Json,
    common,
    grouped_router,
    sigmoid_router,
    softmax_router,
    whole_heads,
)
from megainfer.models.names import TensorNames


@dataclass(frozen=True, slots=True)
class Architecture:
    """pairs: neighbouring channels of a head are rotated together, where ours of the same family
    rotates halves: llama.cpp's converter has changed the order of q's and k's rows. unread: names
    within those of tensors that serving text doesn't need."""

    read_config: Callable[[GgufModel], Json]
    names: TensorNames = NAMES
    pairs: bool = False
    unread: tuple[str, ...] = ()


def _mixtral(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    softmax_router(model, normalised=True)
    model.expect("expert_feed_forward_length", None, config["intermediate_size"])
    return {
        **config,
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": model.needed("expert_count"),
    }


def _qwen2_moe(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    softmax_router(model, normalised=False)
    return {
        **config,
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_experts": model.needed("expert_count"),
        "moe_intermediate_size": model.needed("expert_feed_forward_length"),
        "shared_expert_intermediate_size": model.needed("expert_shared_feed_forward_length"),
        "norm_topk_prob": False,
    }


def _qwen3_moe(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    softmax_router(model, normalised=True)
    return {
        **config,
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": model.needed("expert_count"),
        "moe_intermediate_size": model.needed("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _olmoe(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    softmax_router(model, normalised=False)
    model.expect("expert_feed_forward_length", None, config["intermediate_size"])
    return {
        **config,
        "architectures": ["OlmoeForCausalLM"],
        "num_experts": model.needed("expert_count"),
        "norm_topk_prob": False,
        "clip_qkv": model.number("attention.clamp_kqv") or None,
    }


def _granite_moe(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    softmax_router(model, normalised=True)
    model.expect("expert_feed_forward_length", None, config["intermediate_size"])
    shared = model.whole("expert_shared_feed_forward_length") or 0
    names = ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM")
    return {
        **config,
        "architectures": [names[shared > 0]],
        "num_local_experts": model.needed("expert_count"),
        "shared_intermediate_size": shared,
        "embedding_multiplier": model.number("embedding_scale"),
        "residual_multiplier": model.number("residual_scale"),
        "logits_scaling": model.number("logit_scale"),
        "attention_multiplier": model.number("attention.scale"),
    }


def _gpt_oss(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    model.expect("expert_gating_func", None, SOFTMAX_OF_CHOSEN)
    scaling = config.get("rope_scaling")
    return {
        **config,
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": model.needed("expert_feed_forward_length"),
        "num_local_experts": model.needed("expert_count"),
        "sliding_window": model.whole("attention.sliding_window"),
        # The released models say so; the format has no key for it.
        "rope_scaling": scaling and {**scaling, "truncate": False},
    }


def _glm4_moe(model: GgufModel) -> Json:
    config = common(model)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    model.expect("attention.value_length", None, head_dim)
    return {
        **config,
        **sigmoid_router(model),
        "architectures": ["Glm4MoeForCausalLM"],
        "num_hidden_layers": _without_predictors(model, config),
        "partial_rotary_factor": model.needed("rope.dimension_count") / head_dim,
        "attention_bias": model.has(f"{NAMES.qkv[0]}.bias"),
        "use_qk_norm": model.has(NAMES.q_norm),
    }


def _without_predictors(model: GgufModel, config: Json) -> int:
    """How many layers there are before those that predict several tokens at once."""
    layers: int = config["num_hidden_layers"]
    return layers - (model.whole("nextn_predict_layers") or 0)


def _dots1(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    router = sigmoid_router(model)
    return {**config, **router, "architectures": ["Dots1ForCausalLM"]}


def _ernie(model: GgufModel) -> Json:
    config = common(model)
    whole_heads(model, config)
    softmax_router(model, normalised=True)
    intermediate = model.needed("expert_feed_forward_length")
    # Converters have written the shared experts' size wrong: their tensors have it.
    model.whole("expert_shared_feed_forward_length")
    return {
        **config,
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "moe_num_experts": model.needed("expert_count"),
        "moe_k": model.needed("expert_used_count"),
        "moe_intermediate_size": intermediate,
        "moe_num_shared_experts": model.whole("expert_shared_count") or 0,
        "moe_layer_start_index": model.whole("leading_dense_block_count") or 0,
        "moe_layer_interval": model.whole("interleave_moe_layer_step") or 1,
    }


def _minimax_m2(model: GgufModel) -> Json:
    config = common(model)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    model.expect("expert_gating_func", None, SIGMOID)
    model.expect("attention.value_length", None, head_dim)
    return {
        **config,
        "architectures": ["MiniMaxM2ForCausalLM"],
        "intermediate_size": model.needed("expert_feed_forward_length"),
        "num_local_experts": model.needed("expert_count"),
        "rotary_dim": model.whole("rope.dimension_count") or head_dim,
        "scoring_func": "sigmoid",
    }


def _deepseek(model: GgufModel) -> Json:
    config = common(model)
    model.expect("attention.head_count_kv", 1, config["num_attention_heads"])
    rotated = model.needed("rope.dimension_count")
    keys = model.whole("attention.key_length_mla") or model.needed("attention.key_length")
    values = model.whole("attention.value_length_mla") or model.needed("attention.value_length")
    model.whole("attention.value_length")
    config.pop("head_dim", None)
    latent = {
        "num_hidden_layers": _without_predictors(model, config),
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": model.whole("attention.q_lora_rank"),
        "kv_lora_rank": model.needed("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": keys - rotated,
        "v_head_dim": values,
        "rope_scaling": _deepseek_scaling(model, config),
    }
    return {**config, **latent, **_deepseek_router(model)}


def _deepseek_scaling(model: GgufModel, config: Json) -> Json | None:
    """With the weight of the logarithm, which all released models have the same for scores and for
    cosines, so that these are as they are."""
    scaling: Json | None = config.get("rope_scaling")
    weight = model.number("rope.scaling.yarn_log_multiplier")
    if scaling is None or not weight:
        return scaling
    mscale = round(10 * weight, 6)  # the converter has written a tenth
    return {**scaling, "mscale": mscale, "mscale_all_dim": mscale}


def _deepseek_router(model: GgufModel) -> Json:
    """V3's where scores are sigmoids, else V2's."""
    model.expect("expert_gating_func", None, SOFTMAX, SIGMOID)
    if model.whole("expert_gating_func") == SIGMOID:
        return {**sigmoid_router(model), "architectures": ["DeepseekV3ForCausalLM"]}
    router = grouped_router(model)
    method = "greedy" if router["n_group"] == 1 else "group_limited_greedy"
    return {
        **router,
        "architectures": ["DeepseekV2ForCausalLM"],
        "scoring_func": "softmax",
        "topk_method": method,
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "deepseek2": Architecture(_deepseek, unread=(".nextn.",)),
    "dots1": Architecture(_dots1),
    "ernie4_5-moe": Architecture(_ernie),
    "glm4moe": Architecture(_glm4_moe, AFTER_ATTENTION, unread=(".nextn.",)),
    "gpt-oss": Architecture(_gpt_oss, AFTER_ATTENTION),
    "granitemoe": Architecture(_granite_moe, pairs=True),
    "llama": Architecture(_mixtral, pairs=True),
    "minimax-m2": Architecture(_minimax_m2),
    "olmoe": Architecture(_olmoe),
    "qwen2moe": Architecture(_qwen2_moe),
    "qwen3moe": Architecture(_qwen3_moe),
}
"""By what general.architecture calls them."""
