"""Models that nothing is measured by but the host's own work."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from megainfer.models.registry import load_spec
from megainfer.models.sources import attention_sources, expert_sources

CONTEXT = 256
HEAD = 64
"""Channels of one."""
VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Qwen3-MoE. intermediate: of an expert."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    experts: int
    top_k: int
    intermediate: int

    def config(self) -> Mapping[str, object]:
        """Its config.json."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "moe_intermediate_size": self.intermediate,
            "intermediate_size": self.intermediate,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "hidden_act": "silu",
            "attention_bias": False,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e4,
            "max_position_embeddings": CONTEXT,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "eos_token_id": 2,
            "bos_token_id": 1,
        }


TOY = Shape(layers=8, hidden=64, heads=1, kv_heads=1, experts=4, top_k=2, intermediate=64)
"""So small that what its layers take is the host's own work."""
BULKY = Shape(layers=4, hidden=768, heads=12, kv_heads=4, experts=16, top_k=4, intermediate=512)
"""So large that whoever waits for a stage has gone to sleep before it ends."""


def no_cache_holds(shape: Shape, working: int) -> Shape:
    """With so many layers that the experts' weights in bfloat16 take `working` bytes at least."""
    layer = 2 * shape.experts * 3 * shape.hidden * shape.intermediate
    return replace(shape, layers=max(shape.layers, -(-working // layer)))


def write_model(shape: Shape, folder: Path) -> Path:
    """The folder, which is made, with a checkpoint of random weights in it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    spec = load_spec(folder)
    generator = torch.Generator().manual_seed(0)
    layers = {layer: range(shape.experts) for layer in spec.moe_layers}
    sources = [*attention_sources(spec), *expert_sources(spec, layers)]
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
