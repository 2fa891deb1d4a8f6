"""A checkpoint of gpt-oss-20b's shapes, its experts in MXFP4, of random numbers: as a hub has it,
and the same numbers as a GGUF file of llama.cpp's.

    python benchmarks/gpt_oss.py --folder DIR
    python benchmarks/gpt_oss.py --folder DIR --layers 2 --vocabulary 8192 hub

It writes DIR/gpt-oss (13.1 GB) and DIR/gpt-oss.gguf (the same again), layer after layer, so that it
takes 2 GB of memory. What is there already is written anew.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import make_tokenizer
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

BLOCK = 32
"""Codes that share a scale, in both forms."""
FORMS = "hub", "gguf"
HIDDEN = 2880
EXPERTS, INTERMEDIATE, TOP_K = 32, 2880, 4
HEADS, KV_HEADS, HEAD_DIM, WINDOW = 64, 8, 64, 128
CONTEXT = 131072
SWIGLU_LIMIT, EPS, THETA = 7.0, 1e-5, 150000.0
STRETCHED, ORIGINAL, FAST, SLOW = 32.0, 4096, 32.0, 1.0
EXPONENTS = 119, 121
"""E8M0, from and up to: 2^-8 and 2^-7, by which random codes have about the deviation that keeps
a product's size."""


@dataclass(frozen=True)
class Size:
    """What may be smaller than in gpt-oss-20b."""

    layers: int = 24
    vocabulary: int = 201088


class Numbers:
    """Random tensors, the same in the same order."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, rows: int, columns: int) -> Tensor:
        """bfloat16 [rows, columns]."""
        made = torch.empty(rows, columns, dtype=torch.bfloat16)
        return made.normal_(0, columns**-0.5, generator=self._generator)

    def small(self, *shape: int) -> Tensor:
        """Of biases and sinks, bfloat16."""
        return (torch.randn(shape, generator=self._generator) / 50).bfloat16()

    def codes(self, rows: int, columns: int) -> Tensor:
        """uint8 [EXPERTS, rows, columns / 32, 16], two a byte, neighbours together."""
        return self._whole(0, 256, EXPERTS, rows, columns // BLOCK, BLOCK // 2)

    def scales(self, rows: int, columns: int) -> Tensor:
        """uint8 [EXPERTS, rows, columns / 32]."""
        return self._whole(*EXPONENTS, EXPERTS, rows, columns // BLOCK)

    def _whole(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8, generator=self._generator)


def config_of(size: Size) -> dict[str, object]:
    kinds = ("sliding_attention", "full_attention")
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": HIDDEN,
        "num_hidden_layers": size.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "intermediate_size": INTERMEDIATE,
        "swiglu_limit": SWIGLU_LIMIT,
        "hidden_act": "silu",
        "attention_bias": True,
        "sliding_window": WINDOW,
        "layer_types": [kinds[layer % 2] for layer in range(size.layers)],
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": STRETCHED,
            "original_max_position_embeddings": ORIGINAL,
            "beta_fast": FAST,
            "beta_slow": SLOW,
            "truncate": False,
        },
        "max_position_embeddings": CONTEXT,
        "vocab_size": size.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
        "bos_token_id": 1,
        "quantization_config": {"quant_method": "mxfp4"},
    }


def ends_of(size: Size) -> dict[str, Tensor]:
    """What isn't a layer's, by the hub's names."""
    numbers = Numbers(0)
    return {
        "model.embed_tokens.weight": numbers.matrix(size.vocabulary, HIDDEN),
        "lm_head.weight": numbers.matrix(size.vocabulary, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }


def layer_of(layer: int) -> dict[str, Tensor]:
    """A layer's, by the hub's names without what all begin with."""
    numbers, queries, keys = Numbers(1 + layer), HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    found: dict[str, Tensor] = {}
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"{name}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    found["self_attn.sinks"] = numbers.small(HEADS)
    for name, outputs, inputs in (
        ("self_attn.q_proj", queries, HIDDEN),
        ("self_attn.k_proj", keys, HIDDEN),
        ("self_attn.v_proj", keys, HIDDEN),
        ("self_attn.o_proj", HIDDEN, queries),
        ("mlp.router", EXPERTS, HIDDEN),
    ):
        found[f"{name}.weight"] = numbers.matrix(outputs, inputs)
        found[f"{name}.bias"] = numbers.small(outputs)
    for name, outputs, inputs in (
        ("mlp.experts.gate_up_proj", 2 * INTERMEDIATE, HIDDEN),
        ("mlp.experts.down_proj", HIDDEN, INTERMEDIATE),
    ):
        found[f"{name}_blocks"] = numbers.codes(outputs, inputs)
        found[f"{name}_scales"] = numbers.scales(outputs, inputs)
        found[f"{name}_bias"] = numbers.small(EXPERTS, outputs)
    return found


def write_hub(folder: Path, size: Size, tokenizer: Tokenizer) -> None:
    """A shard a layer, with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [ends_of(size)]
    files: dict[str, str] = {}
    for number in range(size.layers + 1):
        prefix = f"model.layers.{number - 1}."
        shard = shards.pop() if shards else _under(prefix, layer_of(number - 1))
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        files |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config_of(size), indent=1))
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|2|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


# --- as GGUF ----------------------------------------------------------------------------------

Array = np.ndarray[Any, Any]
Kept = tuple[Array, GGMLQuantizationType]
WEIGHTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.router": "ffn_gate_inp",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}


def write_gguf(path: Path, size: Size, tokenizer: Tokenizer) -> None:
    """Names and shapes first, of numbers that are made again when it is their turn."""
    writer = GGUFWriter(path, "gpt-oss")
    _add_settings(writer, size)
    _add_tokenizer(writer, tokenizer)
    layer = dict(_stored_layer(layer_of(0)))
    for name, kept in _stored_ends(ends_of(size)):
        _announce(writer, name, kept)
    for number in range(size.layers):
        for name, kept in layer.items():
            _announce(writer, f"blk.{number}.{name}", kept)
    del layer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, (array, _) in _stored_ends(ends_of(size)):
        writer.write_tensor_data(array)
    for number in range(size.layers):
        for _, (array, _) in _stored_layer(layer_of(number)):
            writer.write_tensor_data(array)
    writer.close()


def _announce(writer: GGUFWriter, name: str, kept: Kept) -> None:
    array, kind = kept
    writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes, raw_dtype=kind)


def _add_settings(writer: GGUFWriter, size: Size) -> None:
    writer.add_block_count(size.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_expert_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    writer.add_sliding_window(WINDOW)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(STRETCHED)
    writer.add_rope_scaling_orig_ctx_len(ORIGINAL)
    writer.add_rope_scaling_yarn_beta_fast(FAST)
    writer.add_rope_scaling_yarn_beta_slow(SLOW)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    ids = tokenizer.get_vocab()
    control = set(range(3))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types([3 if token in control else 1 for token in range(len(ids))])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _stored_ends(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Kept]]:
    yield "token_embd.weight", _halves(tensors["model.embed_tokens.weight"])
    yield "output.weight", _halves(tensors["lm_head.weight"])
    yield "output_norm.weight", _floats(tensors["model.norm.weight"])


def _stored_layer(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Kept]]:
    """The same numbers, by llama.cpp's names, which has gates and ups apart."""
    for name, theirs in NORMS.items():
        yield f"{theirs}.weight", _floats(tensors[f"{name}.weight"])
    yield "attn_sinks.weight", _floats(tensors["self_attn.sinks"])
    for name, theirs in WEIGHTS.items():
        keep = _floats if theirs == "ffn_gate_inp" else _halves  # llama.cpp's router is float32
        yield f"{theirs}.weight", keep(tensors[f"{name}.weight"])
        yield f"{theirs}.bias", _floats(tensors[f"{name}.bias"])
    whole = slice(None)
    for name, theirs, rows in (
        ("gate_up_proj", "ffn_gate_exps", slice(0, None, 2)),
        ("gate_up_proj", "ffn_up_exps", slice(1, None, 2)),
        ("down_proj", "ffn_down_exps", whole),
    ):
        codes, scales, bias = (
            tensors[f"mlp.experts.{name}_{part}"][:, rows] for part in ("blocks", "scales", "bias")
        )
        yield f"{theirs}.weight", _blocks(codes, scales)
        yield f"{theirs}.bias", _floats(bias)


def _floats(tensor: Tensor) -> Kept:
    return tensor.float().contiguous().numpy(), GGMLQuantizationType.F32


def _halves(tensor: Tensor) -> Kept:
    """bfloat16, as bytes, since NumPy has no such type."""
    return tensor.view(torch.uint8).numpy(), GGMLQuantizationType.BF16


def _blocks(codes: Tensor, scales: Tensor) -> Kept:
    """Of 32, a scale and then 16 bytes: in the lower halves the first 16 codes. codes: uint8
    [E, N, G, 16]. scales: uint8 [E, N, G]. Returns uint8 [E, N, 17 G]."""
    one_by_one = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    first, second = one_by_one[..., : BLOCK // 2], one_by_one[..., BLOCK // 2 :]
    whole = torch.cat((scales[..., None], first | second << 4), -1)
    return whole.flatten(-2).contiguous().numpy(), GGMLQuantizationType.MXFP4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("forms", nargs="*", metavar="FORM", help=f"{', '.join(FORMS)}; or both")
    parser.add_argument("--folder", type=Path, required=True)
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value, help="%(default)s")
    options = parser.parse_args()
    forms = options.forms or FORMS
    if unknown := set(forms) - set(FORMS):
        parser.error(f"no such form: {', '.join(sorted(unknown))}; there are {', '.join(FORMS)}")
    size = Size(options.layers, options.vocabulary)
    tokenizer = make_tokenizer(size.vocabulary)
    if "hub" in forms:
        write_hub(options.folder / "gpt-oss", size, tokenizer)
    if "gguf" in forms:
        options.folder.mkdir(parents=True, exist_ok=True)
        write_gguf(options.folder / "gpt-oss.gguf", size, tokenizer)


if __name__ == "__main__":
    main()
