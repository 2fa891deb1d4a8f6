"""A random dense Llama in transformers, and the GGUF file that llama.cpp would make of it."""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("1", "2")]
TOKENS = [*SPECIALS, *sorted(ByteLevel.alphabet()), *(left + right for left, right in MERGES)]
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}"

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    """Seeded weights that Q8_0, and then bfloat16, have already rounded; norms aren't all ones."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_theta=5000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = torch.randn_like(parameter).mul(0.2).add(1).bfloat16().float()
    return model


def write_gguf(model: LlamaForCausalLM, path: Path, architecture: str = "llama") -> None:
    """Write `model` as Q8_0, and put the rounded weights back into `model` itself."""
    writer = gguf.GGUFWriter(path, architecture)
    _write_shape(writer, model.config)
    _write_tokenizer(writer)
    for name, parameter in model.named_parameters():
        _write_tensor(writer, name, parameter, model.config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _write_shape(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_tensor(
    writer: gguf.GGUFWriter, name: str, parameter: torch.nn.Parameter, config: LlamaConfig
) -> None:
    weight = parameter.detach().numpy()
    if weight.ndim == 1:
        writer.add_tensor(_gguf_name(name), weight)
        return
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    role = name.split(".")[-2]
    stored = permute(weight, heads[role]) if role in heads else weight
    writer.add_tensor(_gguf_name(name), quantize(stored, q8_0), raw_dtype=q8_0)
    rounded = torch.from_numpy(dequantize(quantize(weight, q8_0), q8_0))
    parameter.data = rounded.bfloat16().float()


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{_GGUF_NAMES[stem]}.weight"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_GGUF_NAMES[part]}.weight"
