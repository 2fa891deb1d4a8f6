"""tiktoken.model: a list of tokens, each in base64 with its rank, read for the tiktoken library.

What else such a tokenizer is made of, the pattern that cuts texts, is in a program of the model's
folder. Programs of others aren't run here; the pattern is known by the family.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megainfer.errors import ModelError
from megainfer.small_file import MAX_JSON_BYTES, read_small
from megainfer.text.tokenizers.backend import ByteVocabulary, library
from megainfer.text.tokenizers.byte_pairs import BytePairBackend

NAME = "tiktoken.model"
LETTERS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
MOONSHOT = "|".join(
    (
        r"[\p{Han}]+",
        rf"{LETTERS}*{LOWER}+{ENDINGS}",
        rf"{LETTERS}+{LOWER}*{ENDINGS}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
MAX_PIECE, MAX_RUN = 400_000, 25_000  # characters
RUN = re.compile(rf"(?P<cut>\s{{{MAX_RUN}}}(?=\s)|\S{{{MAX_RUN}}}(?=\S))|\s+|\S+")
PATTERNS = {"tokenization_kimi": MOONSHOT, "tokenization_moonshot": MOONSHOT}
"""By the name of the program that tokenizer_config.json's auto_map names."""


def load_tiktoken(path: Path, config: Mapping[str, Any], vocab_size: int) -> BytePairBackend:
    """config: of tokenizer_config.json. vocab_size: the model's; ids below it that have no name are
    reserved tokens. Raises ModelError."""
    pattern = _pattern(path, config)
    ids = _read(path)
    special = _special_tokens(path, config, len(ids), vocab_size)
    tiktoken = library("tiktoken", "tiktoken", str(path))
    encoding = tiktoken.Encoding(
        path.parent.name, pat_str=pattern, mergeable_ranks=ids, special_tokens=special
    )
    return BytePairBackend(
        ByteVocabulary(ids, special, pattern),
        lambda text: [
            token
            for piece in _pieces(text)
            for token in encoding.encode(piece, allowed_special="all")
        ],
        shown=_shown(config),
    )


def _pieces(text: str) -> Iterator[str]:
    """A text in the pieces that the model's own program encodes by themselves: on longer ones, and
    on longer runs of white space or of anything else, the library may give up."""
    for start in range(0, len(text), MAX_PIECE):
        piece, begin = text[start : start + MAX_PIECE], 0
        for run in RUN.finditer(piece) if len(piece) > MAX_RUN else ():
            if run["cut"]:
                yield piece[begin : run.end()]
                begin = run.end()
        yield piece[begin:]


def _pattern(path: Path, config: Mapping[str, Any]) -> str:
    mapped = config.get("auto_map")
    named = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else None
    program = next((n for n in (named if isinstance(named, list) else [named]) if n), "")
    pattern = PATTERNS.get(str(program).split("--")[-1].split(".")[0])
    if pattern is None:
        raise ModelError(
            f"{path}: how texts are cut is in a program of the model's, {str(program)!r:.80} by "
            f"auto_map in tokenizer_config.json, which isn't run; known are {', '.join(PATTERNS)}. "
            "For others, put a tokenizer.json into the folder"
        )
    return pattern


def _read(path: Path) -> dict[bytes, int]:
    try:
        pairs = (line.split() for line in read_small(path, MAX_JSON_BYTES).splitlines() if line)
        ids = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} isn't a list of tokens in base64 and ranks: {error}") from error
    if sorted(ids.values()) != list(range(len(ids))) or not ids:
        raise ModelError(f"{path}: its {len(ids)} ranks aren't 0 to {len(ids) - 1}, each once")
    return ids


def _special_tokens(
    path: Path, config: Mapping[str, Any], first: int, vocab_size: int
) -> dict[str, int]:
    entries = config.get("added_tokens_decoder") or {}
    try:
        named = {int(token): str(entry["content"]) for token, entry in entries.items()}
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"added_tokens_decoder in {path.with_name('tokenizer_config.json')} must map ids to "
            f'{{"content": ...}}, but is {entries!r:.80}'
        ) from error
    if wrong := [token for token in named if token < first]:
        raise ModelError(
            f"added_tokens_decoder in {path.with_name('tokenizer_config.json')} names {wrong[0]}, "
            f"which {path.name} has as one of its {first} tokens"
        )
    reserved = {token: f"<|reserved_token_{token}|>" for token in range(first, vocab_size)}
    return {text: token for token, text in {**reserved, **named}.items()}


def _shown(config: Mapping[str, Any]) -> frozenset[int]:
    """Added tokens that are said not to be special, such as Kimi-K2-Thinking's </think>."""
    entries = config.get("added_tokens_decoder") or {}
    return frozenset(int(t) for t, entry in entries.items() if entry.get("special") is False)
