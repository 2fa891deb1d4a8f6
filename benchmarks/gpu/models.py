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
from tests.support.public_models import PUBLIC_MODELS

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
GPT_OSS_120B: Json = PUBLIC_MODELS["gpt-oss-120b"].config
MODELS: Mapping[str, Json] = {
    "Qwen3-30B-A3B": QWEN3_30B,
    "gpt-oss-120b": GPT_OSS_120B,
    "DeepSeek-V3": PUBLIC_MODELS["deepseek-v3"].config,
    "DeepSeek-V3.2": PUBLIC_MODELS["deepseek-v3.2"].config,
    "Qwen3-Next-80B-A3B": PUBLIC_MODELS["qwen3-next-80b-a3b"].config,
    "Llama-4-Scout": PUBLIC_MODELS["llama-4-scout"].config,
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
