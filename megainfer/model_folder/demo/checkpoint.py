"""Write the upcycled model as an ordinary Hugging Face checkpoint folder, shard by shard."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megainfer.model_folder.demo.llama_gguf import FloatArray, LlamaGguf, LlamaShape
from megainfer.model_folder.demo.recipe import Progress, Upcycling
from megainfer.model_folder.demo.tokenizer import TokenizerParts, read_tokenizer, write_tokenizer
from megainfer.model_folder.demo.upcycle import moe_layer

_LAYERS_A_SHARD = 6  # 0.14 GB of SmolLM2-135M with four experts


# What SmolLM2's authors advise for the small instruction models, and a penalty without which three
# in ten first answers go round in circles (docs/demo-model.md).
_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}


def write_checkpoint(gguf_path: Path, folder: Path, how: Upcycling, progress: Progress) -> None:
    """Convert the Llama GGUF at `gguf_path` into a Mixtral checkpoint in the existing `folder`.

    Weights are bfloat16, rounded once from the dequantised values: that rounding is part of the
    model. One shard is in memory at a time. Raises `ModelError` for a GGUF of another kind.
    """
    progress("reading the dense model", 0.0)
    gguf = LlamaGguf(gguf_path)
    tokenizer = read_tokenizer(gguf.metadata)
    write_tokenizer(tokenizer, gguf.shape.context, folder)
    _write_json(folder / "config.json", mixtral_config(gguf.shape, tokenizer, how))
    _write_json(folder / "generation_config.json", {**_special_ids(tokenizer), **_SAMPLING})
    _write_shards(gguf, folder, how, progress)


def mixtral_config(shape: LlamaShape, tokenizer: TokenizerParts, how: Upcycling) -> dict[str, Any]:
    """config.json as transformers 5 writes it, and `rope_theta` once more for older readers."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_local_experts": how.experts,
        "num_experts_per_tok": how.top_k,
        "max_position_embeddings": shape.context,
        "sliding_window": None,
        "rms_norm_eps": shape.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied,
        **_special_ids(tokenizer),
    }


def _special_ids(tokenizer: TokenizerParts) -> dict[str, int]:
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _write_shards(gguf: LlamaGguf, folder: Path, how: Upcycling, progress: Progress) -> None:
    starts = range(0, gguf.shape.layers, _LAYERS_A_SHARD)
    count = 1 + len(starts)
    index: dict[str, str] = {}
    total_bytes = 0
    for number, tensors in enumerate(_shards(gguf, how, starts), start=1):
        progress(f"writing weights, file {number} of {count}", (number - 1) / count)
        name = f"model-{number:05}-of-{count:05}.safetensors"
        total_bytes += _save_bfloat16(tensors, folder / name)
        index |= dict.fromkeys(tensors, name)
    content = {"metadata": {"total_size": total_bytes}, "weight_map": index}
    _write_json(folder / "model.safetensors.index.json", content)


def _shards(gguf: LlamaGguf, how: Upcycling, starts: range) -> Iterator[dict[str, FloatArray]]:
    yield gguf.outside_layers()
    for start in starts:
        shard: dict[str, FloatArray] = {}
        for layer in range(start, min(start + starts.step, starts.stop)):
            shard |= moe_layer(gguf, layer, how)
        yield shard


def _save_bfloat16(tensors: dict[str, FloatArray], path: Path) -> int:
    """Write one shard, rounding to nearest even, and return its bytes of weights."""
    import torch
    from safetensors.torch import save_file

    rounded = {name: torch.from_numpy(t).to(torch.bfloat16) for name, t in tensors.items()}
    save_file(rounded, path, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in rounded.values())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
