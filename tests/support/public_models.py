"""config.json of public models, as far as a plan depends on it, and the sizes that their makers
publish."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec


@dataclass(frozen=True)
class PublicModel:
    """config: of config.json. total, active: weights in billions, as its makers round them; active
    ones are those that a token meets."""

    config: Mapping[str, Any]
    total: float
    active: float


_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_LATENT = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 163840,
}
PUBLIC_MODELS: Mapping[str, PublicModel] = {
    "mixtral-8x22b": PublicModel(
        {
            "architectures": ["MixtralForCausalLM"],
            "hidden_size": 6144,
            "intermediate_size": 16384,
            "num_hidden_layers": 56,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
            "max_position_embeddings": 65536,
        },
        141,
        39,
    ),
    "dbrx": PublicModel(
        {
            "architectures": ["DbrxForCausalLM"],
            "d_model": 6144,
            "n_layers": 40,
            "n_heads": 48,
            "max_seq_len": 32768,
            "vocab_size": 100352,
            "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000},
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        },
        132,
        36,
    ),
    "qwen3-235b-a22b": PublicModel(
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
        },
        235,
        22,
    ),
    "deepseek-v3": PublicModel(
        {
            **_LATENT,
            "architectures": ["DeepseekV3ForCausalLM"],
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "rope_theta": 10000.0,
            "first_k_dense_replace": 3,
            "n_routed_experts": 256,
            "n_group": 8,
            "topk_group": 4,
            "vocab_size": 129280,
        },
        671,
        37,
    ),
    "deepseek-v3.2": PublicModel(
        {
            **_LATENT,
            "architectures": ["DeepseekV32ForCausalLM"],
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "rope_theta": 10000.0,
            "first_k_dense_replace": 3,
            "n_routed_experts": 256,
            "n_group": 8,
            "topk_group": 4,
            "index_n_heads": 64,
            "index_head_dim": 128,
            "index_topk": 2048,
            "vocab_size": 129280,
        },
        672,
        37.5,
    ),
    "kimi-k2": PublicModel(
        {
            **_LATENT,
            "architectures": ["DeepseekV3ForCausalLM"],
            "num_attention_heads": 64,
            "first_k_dense_replace": 1,
            "n_routed_experts": 384,
            "n_group": 1,
            "topk_group": 1,
            "vocab_size": 163840,
        },
        1026,
        32,
    ),
    "gpt-oss-120b": PublicModel(
        {
            "architectures": ["GptOssForCausalLM"],
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 36,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "rope_theta": 150000.0,
            "rope_scaling": _YARN,
            "vocab_size": 201088,
            "max_position_embeddings": 131072,
        },
        116.8,
        5.1,
    ),
    "qwen3-next-80b-a3b": PublicModel(
        {
            "architectures": ["Qwen3NextForCausalLM"],
            "hidden_size": 2048,
            "intermediate_size": 5120,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_hidden_layers": 48,
            "full_attention_interval": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "norm_topk_prob": True,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
        },
        80,
        3.6,  # "3B"; the linear layers' are counted
    ),
    "llama-4-scout": PublicModel(
        {
            "architectures": ["Llama4ForCausalLM"],
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 8192,
            "rope_theta": 500000.0,
            "vocab_size": 202048,
            "max_position_embeddings": 10485760,
        },
        108,
        17,
    ),
}


def public_spec(name: str, folder: Path) -> ModelSpec:
    """Of one of these models; its config.json is written to this folder."""
    content = {"dtype": "bfloat16", "tie_word_embeddings": False, **PUBLIC_MODELS[name].config}
    (folder / "config.json").write_text(json.dumps(content))
    return load_spec(folder)
