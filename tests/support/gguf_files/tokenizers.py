"""Small tokenizers, and how a GGUF file keeps them."""

import json
from collections.abc import Callable, Sequence

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SAMPLE = (
    "The quick brown foxes aren't jumping over 12345 lazy dogs; they've been told: DON'T!\n\n"
    "  def main(x):\n    return x+1\tnaïve café 中文 текст 🦙🦙\r\n" * 3
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def trained(patterns: pre_tokenizers.PreTokenizer, size: int = 330) -> tuple[list[str], list[str]]:
    """Tokens in order of id, and merges, of a byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = patterns
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE], trainer)
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(vocabulary, key=vocabulary.__getitem__), [" ".join(pair) for pair in merges]


def byte_level(
    tokens: Sequence[str], merges: Sequence[str], pre: str, padding: int = 2
) -> Callable[[gguf.GGUFWriter], None]:
    """Adds these, special tokens and one of a user's own behind them, and padding."""
    own = [*SPECIALS, "<tool>"]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([*tokens, *own, *(f"[PAD{i}]" for i in range(padding))])
        kinds = [NORMAL] * len(tokens) + [CONTROL] * len(SPECIALS) + [USER_DEFINED]
        writer.add_token_types([*kinds, *[UNUSED] * padding])
        writer.add_token_merges(list(merges))
        writer.add_eos_token_id(len(tokens) + 2)
        writer.add_bos_token_id(len(tokens))
        writer.add_add_bos_token(False)
        writer.add_chat_template(TEMPLATE)

    return add


def sentence_piece(
    pieces: Sequence[str], scores: Sequence[float]
) -> Callable[[gguf.GGUFWriter], None]:
    """Adds `<unk>`, `<s>`, `</s>`, the bytes, then these."""

    def add(writer: gguf.GGUFWriter) -> None:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *pieces])
        writer.add_token_scores([0.0] * 259 + list(scores))
        kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
        writer.add_token_types(kinds + [NORMAL] * len(pieces))
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    return add
