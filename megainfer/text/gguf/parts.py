"""What a GGUF file keeps of a tokenizer."""

from dataclasses import dataclass
from enum import IntEnum

from megainfer.errors import ModelError
from megainfer.gguf.metadata import Metadata

MODEL = "tokenizer.ggml.model"
PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
TEMPLATE = "tokenizer.chat_template"
MAX_TOKENS, MAX_LENGTH, MAX_CHARACTERS = 1_000_000, 4096, 16_000_000
"""Of a vocabulary, of one token, and of all together: the largest have 300,000 tokens, and spaces
by the hundred."""
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Of special tokens, with what llama.cpp calls them."""


class TokenKind(IntEnum):
    """llama.cpp's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """model: `gpt2` for byte-level BPE, `llama` for SentencePiece's. pre: how texts are cut before
    that. tokens, kinds, scores: in order of id; scores may be empty. merges: of a BPE, the best
    first. roles: ids of special tokens, by `bos` and so on. adds: which of them, `bos` and `eos`,
    stand around every text; None where the file doesn't say. space_first: whether a space is put
    before a text."""

    metadata: Metadata
    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    roles: dict[str, int]
    adds: dict[str, bool | None]
    space_first: bool | None

    def ids_of(self, *kinds: TokenKind) -> list[int]:
        return [token for token, kind in enumerate(self.kinds) if kind in kinds]


def read_parts(metadata: Metadata) -> TokenizerParts | None:
    """None of a file without a tokenizer. Raises ModelError where the parts don't fit together."""
    model = metadata.text(MODEL)
    if model in (None, "none", "no_vocab"):
        return None
    tokens = metadata.texts(TOKENS)
    if not 0 < len(tokens) <= MAX_TOKENS or len(set(tokens)) != len(tokens):
        raise ModelError(
            f"{metadata.path}: {TOKENS} has {len(tokens)} tokens, but must have 1 to {MAX_TOKENS} "
            "different ones"
        )
    lengths = list(map(len, tokens))
    if max(lengths) > MAX_LENGTH or sum(lengths) > MAX_CHARACTERS:
        raise ModelError(
            f"{metadata.path}: {TOKENS} has a token of {max(lengths)} characters, and "
            f"{sum(lengths)} in all; at most {MAX_LENGTH} and {MAX_CHARACTERS} are read"
        )
    kinds = [int(kind) for kind in metadata.numbers("tokenizer.ggml.token_type")]
    scores = [float(score) for score in metadata.numbers("tokenizer.ggml.scores")]
    kinds = kinds or [TokenKind.NORMAL.value] * len(tokens)
    if len(kinds) != len(tokens) or len(scores) not in (0, len(tokens)):
        raise ModelError(
            f"{metadata.path} has {len(tokens)} tokens, but types of {len(kinds)} and scores of "
            f"{len(scores)}"
        )
    return TokenizerParts(
        metadata,
        str(model),
        metadata.text(PRE) or "default",
        tokens,
        kinds,
        scores,
        metadata.texts("tokenizer.ggml.merges"),
        _roles(metadata, len(tokens)),
        {role: metadata.flag(f"tokenizer.ggml.add_{role}_token") for role in ("bos", "eos")},
        metadata.flag("tokenizer.ggml.add_space_prefix"),
    )


def _roles(metadata: Metadata, count: int) -> dict[str, int]:
    found = {}
    for role, theirs in ROLES.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        token = metadata.whole(key)
        if token is not None and not 0 <= token < count:
            raise metadata.fail(key, f"but there are {count} tokens")
        if token is not None:
            found[role] = token
    return found


def chat_templates(metadata: Metadata) -> dict[str, str]:
    """By name; empty where the file has none."""
    names = metadata.texts("tokenizer.chat_templates")
    found = {name: metadata.text(f"{TEMPLATE}.{name}") for name in names}
    found["default"] = metadata.text(TEMPLATE)
    return {name: source for name, source in found.items() if source is not None}
