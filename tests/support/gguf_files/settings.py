"""The metadata that llama.cpp's converter makes of a config.json."""

from collections.abc import Callable, Mapping
from typing import Any

from gguf import ExpertGatingFuncType, GGUFWriter, RopeScalingType

Config = Mapping[str, Any]

ARCHITECTURES = {
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "dots1": "dots1",
    "ernie4_5_moe": "ernie4_5-moe",
    "glm4_moe": "glm4moe",
    "gpt_oss": "gpt-oss",
    "granitemoe": "granitemoe",
    "granitemoeshared": "granitemoe",
    "minimax_m2": "minimax-m2",
    "mixtral": "llama",
    "olmoe": "olmoe",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
"""By model_type: what the file calls the family."""


def add_settings(writer: GGUFWriter, config: Config) -> None:
    family = config["model_type"]
    _add_common(writer, config)
    _add_rope(writer, config)
    _ADDERS[family](writer, config)


def _head_dim(config: Config) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _experts(config: Config) -> int:
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return next(config[key] for key in keys if config.get(key))


def _add_common(writer: GGUFWriter, config: Config) -> None:
    heads = config["num_attention_heads"]
    latent = config.get("kv_lora_rank")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(1 if latent else config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(_experts(config))
    writer.add_expert_used_count(config.get("num_experts_per_tok") or config["moe_k"])
    if config.get("head_dim") and not latent:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def _add_rope(writer: GGUFWriter, config: Config) -> None:
    own = config.get("rope_parameters") or config.get("rope_scaling") or {}
    writer.add_rope_freq_base(own.get("rope_theta") or config["rope_theta"])
    if own.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(own["factor"])
        writer.add_rope_scaling_orig_ctx_len(own["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(own.get("beta_fast", 32.0))
        writer.add_rope_scaling_yarn_beta_slow(own.get("beta_slow", 1.0))
        if own.get("mscale_all_dim"):
            writer.add_rope_scaling_yarn_log_mul(0.1 * own["mscale_all_dim"])


def _mixtral(writer: GGUFWriter, config: Config) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(_head_dim(config))


def _qwen(writer: GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if shared := config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(shared)


def _olmoe(writer: GGUFWriter, config: Config) -> None:
    if config.get("clip_qkv"):
        writer.add_clamp_kqv(config["clip_qkv"])


def _granite(writer: GGUFWriter, config: Config) -> None:
    _mixtral(writer, config)
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    if shared := config.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(shared)


def _gpt_oss(writer: GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def _sigmoid(writer: GGUFWriter, config: Config) -> None:
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    _grouped(writer, config)


def _grouped(writer: GGUFWriter, config: Config) -> None:
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(bool(config.get("norm_topk_prob")))
    if config.get("n_group"):
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])


def _glm4(writer: GGUFWriter, config: Config) -> None:
    own = config.get("rope_parameters") or config
    writer.add_rope_dimension_count(int(_head_dim(config) * own["partial_rotary_factor"]))
    writer.add_nextn_predict_layers(0)
    _sigmoid(writer, config)


def _ernie(writer: GGUFWriter, config: Config) -> None:
    writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
    writer.add_leading_dense_block_count(config["moe_layer_start_index"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["moe_num_shared_experts"])


def _minimax(writer: GGUFWriter, config: Config) -> None:
    writer.add_rope_dimension_count(config["rotary_dim"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def _deepseek(writer: GGUFWriter, config: Config) -> None:
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rotated)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rotated)
    if config["model_type"] == "deepseek_v3":
        _sigmoid(writer, config)
    else:
        _grouped(writer, config)


_ADDERS: Mapping[str, Callable[[GGUFWriter, Config], None]] = {
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "dots1": _sigmoid,
    "ernie4_5_moe": _ernie,
    "glm4_moe": _glm4,
    "gpt_oss": _gpt_oss,
    "granitemoe": _granite,
    "granitemoeshared": _granite,
    "minimax_m2": _minimax,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
}
