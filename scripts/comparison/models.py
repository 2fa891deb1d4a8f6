"""Small random checkpoints of families whose attention and experts have little in common."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 320
CONTEXT = 256
_ROOT = Path(__file__).resolve().parents[2]
_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 96,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "moe_intermediate_size": 40,
}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # Grouped queries with norms of queries and keys; every layer has experts.
    "qwen3_moe": ("gqa", {"head_dim": 24, "num_experts": 16, "num_experts_per_tok": 4}),
    # Latent attention, groups of experts, a shared expert, and a dense layer first.
    "deepseek_v3": ("groups", {"kv_lora_rank": 40, "qk_nope_head_dim": 20, "v_head_dim": 18}),
    # Gated DeltaNet between layers of gated attention, and a shared expert with a gate.
    "qwen3_next": ("grouped", {"layer_types": ["linear_attention", "full_attention"] * 2}),
    # Windows and sinks in attention; experts with biases and a clamped activation.
    "gpt_oss": ("alternating", {"head_dim": 24, "sliding_window": 33}),
}
"""Of each family one shape of the tests' own, and settings over it and over _SIZES."""


def write_model(family: str, folder: Path) -> Path:
    """config.json and float32 safetensors, the same on every call; returns folder."""
    if str(_ROOT) not in sys.path:  # a script has only its own folder there
        sys.path.append(str(_ROOT))
    from transformers.utils.logging import disable_progress_bar  # takes seconds

    from tests.support.checkpoints import write_checkpoint

    disable_progress_bar()
    shape, settings = FAMILIES[family]
    return write_checkpoint(family, shape, folder, **{**_SIZES, **settings})
