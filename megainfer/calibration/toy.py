"""A model so small that what its layers take is the host's own work."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from megainfer.models.registry import load_spec
from megainfer.models.sources import attention_sources, expert_sources

LAYERS = 8
EXPERTS = 4
TOP_K = 2
CONTEXT = 256


def config() -> Mapping[str, object]:
    """Its config.json: a Qwen3-MoE."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": 64,
        "intermediate_size": 64,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": CONTEXT,
        "vocab_size": 256,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
        "bos_token_id": 1,
    }


def write_toy(folder: Path) -> Path:
    """The folder, which exists, with a checkpoint of random weights in it."""
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config(), indent=1))
    spec = load_spec(folder)
    generator = torch.Generator().manual_seed(0)
    sources = [
        *attention_sources(spec),
        *expert_sources(spec, {layer: range(EXPERTS) for layer in spec.moe_layers}),
    ]
    tensors = {
        source.name: (
            torch.ones(source.shape)
            if len(source.shape) == 1
            else torch.randn(source.shape, generator=generator) / prod(source.shape[1:]) ** 0.5
        ).to(torch.bfloat16)
        for source in sources
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
