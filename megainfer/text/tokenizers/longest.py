"""How much text one token of a tokenizer.json may stand for."""

import json
from typing import Any

import tokenizers

from megainfer.text.tokenizers.byte_alphabet import byte_alphabet

COMPOSED = {"NFC": 4}
"""Of how many characters normalizers may make one: a character decomposes into 4 at most (Unicode's
UAX #15, on maximum expansion), which is what NFC may put together."""
KEEPING = ("ByteLevel", "Digits", "Split")
"""Pre-tokenizers after which all of a text is still there, but for a Split that removes."""


def longest_token(backend: tokenizers.Tokenizer) -> int | None:
    """Characters that a token stands for at most, so that a text has as many tokens at least as its
    length divided by that. None where it isn't certain, as where text may be dropped: it is for
    byte-level BPE."""
    normalizers = _parts(backend.normalizer, "normalizers")
    cutting = _parts(backend.pre_tokenizer, "pretokenizers")
    added = backend.get_added_tokens_decoder().values()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if (
        any(part["type"] not in COMPOSED for part in normalizers)
        or any(part["type"] not in KEEPING or part.get("behavior") == "Removed" for part in cutting)
        or not any(part["type"] == "ByteLevel" for part in cutting)
        or any(token.lstrip or token.rstrip for token in added)
        or not isinstance(backend.model, tokenizers.models.BPE)
        or not vocabulary.keys() >= byte_alphabet().keys()
    ):
        return None
    factor = 1
    for part in normalizers:
        factor *= COMPOSED[part["type"]]
    return factor * max(map(len, vocabulary))


def _parts(component: Any, several: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, as tokenizer.json says it."""
    if component is None:
        return []
    own: dict[str, Any] = json.loads(component.__getstate__())
    return _flat(own, several)


def _flat(part: dict[str, Any], several: str) -> list[dict[str, Any]]:
    if part["type"] != "Sequence":
        return [part]
    return [inner for own in part[several] for inner in _flat(own, several)]
