"""Models whose shapes kernels are compiled and timed for: what `config.json` says of sizes, as they
were published. Weights are made up (`made_up.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec

Json = Mapping[str, Any]

QWEN3_30B: Json = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "rope_theta": 1e6,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
GPT_OSS_120B: Json = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
}
DEEPSEEK_V3: Json = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_theta": 10000.0,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
}
DEEPSEEK_V32: Json = {
    **DEEPSEEK_V3,
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
}
QWEN3_NEXT_80B: Json = {
    "architectures": ["Qwen3NextForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
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
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
}
LLAMA_4_SCOUT: Json = {
    "architectures": ["Llama4ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_chunk_size": 8192,
    "rope_theta": 500000.0,
    "vocab_size": 202048,
    "max_position_embeddings": 10485760,
}
MODELS: Mapping[str, Json] = {
    "Qwen3-30B-A3B": QWEN3_30B,
    "gpt-oss-120b": GPT_OSS_120B,
    "DeepSeek-V3": DEEPSEEK_V3,
    "DeepSeek-V3.2": DEEPSEEK_V32,
    "Qwen3-Next-80B-A3B": QWEN3_NEXT_80B,
    "Llama-4-Scout": LLAMA_4_SCOUT,
}


SMALLER: Json = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_topk": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "sliding_window": 9,
    "attention_chunk_size": 16,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


def small(config: Json) -> Json:
    """The same model for the interpreter: what it has, in tiny sizes."""
    smaller = {key: size for key, size in SMALLER.items() if key in config}
    if config["num_key_value_heads"] == config["num_attention_heads"]:
        smaller["num_key_value_heads"] = smaller["num_attention_heads"]
    return {**config, **smaller}


def spec_of(config: Json, layers: int | None = None) -> ModelSpec:
    """A model's spec, with its first layers only where so many are asked for."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
        spec = load_spec(Path(folder))
    return replace(spec, layers=spec.layers[:layers])


def kinds_of(spec: ModelSpec) -> ModelSpec:
    """The model with one layer of each kind that it has, in their order."""
    return replace(spec, layers=tuple(dict.fromkeys(spec.layers)))
