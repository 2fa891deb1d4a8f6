"""Rebuild a byte-level BPE tokenizer as Hugging Face files from what a GGUF file keeps of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megainfer.errors import ModelError

TOOLS = """\
{% if tools %}{{ '<|im_start|>system
You may call functions. Their signatures are within <tools></tools>:
<tools>' }}{% for tool in tools %}{{ '
' + (tool | tojson) }}{% endfor %}{{ '
</tools>
For each call write its name and arguments within <tool_call></tool_call>:
<tool_call>
{"name": <name>, "arguments": <object>}
</tool_call><|im_end|>
' }}{% endif %}"""
"""Goes before the model's own template, which knows no tools. It wasn't trained for them, but a
client that offers some gets an answer."""

_CONTROL = 3  # llama.cpp's token type of special tokens


@dataclass(frozen=True)
class TokenizerParts:
    """Tokens in order of id; ids of special tokens; merges, best first; the roles of specials."""

    tokens: list[str]
    control_ids: list[int]
    merges: list[tuple[str, str]]
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int
    chat_template: str


def read_tokenizer(metadata: Callable[[str], Any]) -> TokenizerParts:
    """Read the parts by GGUF metadata key; `ModelError` if the tokenizer is of another kind."""
    kind = metadata("tokenizer.ggml.model"), metadata("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ModelError(f"the GGUF tokenizer is {kind}, expected ('gpt2', 'smollm')")
    types = metadata("tokenizer.ggml.token_type")
    return TokenizerParts(
        tokens=metadata("tokenizer.ggml.tokens"),
        control_ids=[i for i, kind in enumerate(types) if kind == _CONTROL],
        merges=[_pair(merge) for merge in metadata("tokenizer.ggml.merges")],
        bos_id=int(metadata("tokenizer.ggml.bos_token_id")),
        eos_id=int(metadata("tokenizer.ggml.eos_token_id")),
        pad_id=int(metadata("tokenizer.ggml.padding_token_id")),
        unk_id=int(metadata("tokenizer.ggml.unknown_token_id")),
        chat_template=TOOLS + metadata("tokenizer.chat_template"),
    )


def _pair(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ")
    return left, right


def build_tokenizer(parts: TokenizerParts) -> Tokenizer:
    """The tokenizer of the SmolLM family: each digit alone, then GPT-2's byte-level words."""
    vocab = {token: i for i, token in enumerate(parts.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=parts.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(parts.tokens[i], special=True, normalized=False) for i in parts.control_ids]
    )
    return tokenizer


def write_tokenizer(parts: TokenizerParts, context: int, folder: Path) -> None:
    """Write tokenizer.json, its configuration, the map of special tokens and the chat template.

    The template goes both into tokenizer_config.json and into a file of its own, since readers of
    Hugging Face folders know one place or the other. `context` is the longest input in tokens.
    """
    build_tokenizer(parts).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(parts.chat_template)
    specials = _special_tokens(parts)
    _write_json(folder / "special_tokens_map.json", specials)
    config = {
        # The class that takes tokenizer.json as it is: GPT2Tokenizer would drop the digit rule.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        **specials,
        "chat_template": parts.chat_template,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _special_tokens(parts: TokenizerParts) -> dict[str, str]:
    return {
        "bos_token": parts.tokens[parts.bos_id],
        "eos_token": parts.tokens[parts.eos_id],
        "pad_token": parts.tokens[parts.pad_id],
        "unk_token": parts.tokens[parts.unk_id],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
