"""Random checkpoints of given shapes, written without any model library, for benchmarks only."""

import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A Qwen3-MoE of these sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    intermediate: int
    vocabulary: int = 8192
    context: int = 8192

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
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
            "rope_theta": 1e6,
            "rope_scaling": None,
            "max_position_embeddings": self.context,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "eos_token_id": 2,
            "bos_token_id": 1,
        }


SHAPES = {
    "0.17B": Shape(512, 8, 8, 4, 64, 32, 4, 384),
    "1B": Shape(1024, 12, 16, 4, 64, 32, 4, 768),
}


def ensure_checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint of a named shape under `folder`, written if it isn't there."""
    target = folder / f"qwen3-moe-{name}"
    if not (target / "config.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        shape = SHAPES[name]
        save_file(dict(tensors_of(shape, _noise())), target / "model.safetensors", {"format": "pt"})
        (target / "config.json").write_text(json.dumps(shape.config(), indent=1))
    return target


def with_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint with a tokenizer: itself, or one of links to it under `folder`.

    Engines that are handed token ids have no use for one; their servers have, for the answers.
    """
    if (checkpoint / "tokenizer.json").exists():
        return checkpoint
    target = folder / f"{checkpoint.name}-text"
    if not (target / "tokenizer.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        for path in checkpoint.iterdir():
            (target / path.name).unlink(missing_ok=True)
            (target / path.name).symlink_to(path.resolve())
        size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
        (target / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|2|>"})
        )
        make_tokenizer(size).save(str(target / "tokenizer.json"))
    return target


def make_tokenizer(size: int) -> Tokenizer:
    """Three special tokens, all bytes, then pairs and triples of letters and digits, as far as
    the size goes; raises ValueError where it goes further."""
    special = [f"<|{number}|>" for number in range(3)]
    letters = string.ascii_letters + string.digits
    pairs = list(product(letters, letters))
    triples = ((a + b, c) for (a, b), c in product(pairs, letters))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = max(0, size - len(special) - len(alphabet))
    merges = list(islice(chain(pairs, triples), room))
    tokens = [*special, *alphabet, *(first + second for first, second in merges)][:size]
    if len(tokens) != size:
        raise ValueError(f"a tokenizer of this kind can't have {size} tokens")
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _noise() -> Callable[[int, int], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        weight: Tensor = torch.randn(rows, columns, generator=generator) / columns**0.5
        return weight.to(torch.bfloat16)

    return matrix


def tensors_of(shape: Shape, matrix: Callable[[int, int], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint by name; `matrix` makes those of so many rows and columns."""

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    yield "model.embed_tokens.weight", matrix(shape.vocabulary, shape.hidden)
    yield "lm_head.weight", matrix(shape.vocabulary, shape.hidden)
    yield "model.norm.weight", ones(shape.hidden)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", ones(shape.hidden)
        yield f"{at}.post_attention_layernorm.weight", ones(shape.hidden)
        yield f"{at}.self_attn.q_proj.weight", matrix(queries, shape.hidden)
        yield f"{at}.self_attn.k_proj.weight", matrix(keys, shape.hidden)
        yield f"{at}.self_attn.v_proj.weight", matrix(keys, shape.hidden)
        yield f"{at}.self_attn.o_proj.weight", matrix(shape.hidden, queries)
        yield f"{at}.self_attn.q_norm.weight", ones(shape.head_dim)
        yield f"{at}.self_attn.k_norm.weight", ones(shape.head_dim)
        yield f"{at}.mlp.gate.weight", matrix(shape.experts, shape.hidden)
        for expert in range(shape.experts):
            part = f"{at}.mlp.experts.{expert}"
            yield f"{part}.gate_proj.weight", matrix(shape.intermediate, shape.hidden)
            yield f"{part}.up_proj.weight", matrix(shape.intermediate, shape.hidden)
            yield f"{part}.down_proj.weight", matrix(shape.hidden, shape.intermediate)
