"""Small random checkpoints of families whose attention and experts have little in common."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 320
CONTEXT = 320

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    # Grouped queries with norms of queries and keys; every layer has experts.
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 24,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
    },
    # Latent attention, groups of experts, a shared expert, and a dense layer first.
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 40,
        "q_lora_rank": 36,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 8,
        "v_head_dim": 18,
        "moe_intermediate_size": 40,
        "n_routed_experts": 12,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 3,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0,
    },
    # Gated DeltaNet between layers of gated attention, and a shared expert with a gate.
    "qwen3_next": {
        "num_key_value_heads": 2,
        "head_dim": 24,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 20,
        "linear_value_head_dim": 18,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 24,
    },
    # Windows and sinks in attention; experts with biases and a clamped activation.
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 24,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "sliding_window": 33,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": CONTEXT // 32,
        },
    },
}


def write_model(family: str, folder: Path) -> Path:
    """config.json and float32 safetensors, the same on every call; returns folder."""
    from transformers import AutoConfig, AutoModelForCausalLM  # takes seconds
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.for_model(family, **{**_BASE, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, dtype="float32")
    _randomise(model)
    model.save_pretrained(folder)
    return folder


def _randomise(model: Any) -> None:
    """Weights by which every part of a layer matters to the next token."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in _stored(model):
            noise = torch.randn(weight.shape, generator=generator)
            if re.search(r"norm\.weight$", name):
                weight.add_(0.2 * noise)  # about 1, or 0 where 1 is added to it
            elif name.endswith("A_log"):
                weight.copy_(noise - 2)  # states that remember some ten tokens
            elif weight.dim() == 1:
                weight.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                weight.copy_(noise)
            else:
                weight.copy_(noise * _gain(name) / math.sqrt(weight.shape[-1]))


def _stored(model: Any) -> Iterator[tuple[str, Any]]:
    """Parameters, and buffers that are saved, as a router's bias."""
    saved = set(model.state_dict())
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _gain(name: str) -> float:
    return 3.0 if re.search(r"\.(gate|router)\.weight$", name) else 2.0
