"""What every kind of tokenizer can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Protocol

from megainfer.errors import ModelError


@dataclass(frozen=True, slots=True)
class ByteVocabulary:
    """Of a byte-level BPE. ids: of each token's bytes; a merge is done before those of larger ids.
    special: ids of special tokens by their texts. pattern: a regular expression that cuts a text
    into the pieces that are merged by themselves."""

    ids: Mapping[bytes, int]
    special: Mapping[str, int]
    pattern: str


class TokenizerBackend(Protocol):
    """Safe to use from several threads."""

    @property
    def vocab_size(self) -> int:
        """Ids that stand for text are below it."""
        ...

    def token_id(self, text: str) -> int | None:
        """The id of the token that is exactly this text, if there is one."""
        ...

    def piece(self, token: int) -> str | None:
        """A token as the vocabulary spells it; None beyond the vocabulary."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """What it contributes to a text's UTF-8, spelled out where it is special; empty beyond the
        vocabulary."""
        ...

    def is_special(self, token: int) -> bool:
        """Whether texts leave it out unless asked for."""
        ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """add_special_tokens: those that stand around every text."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Ids beyond the vocabulary have no text; bytes that are none give U+FFFD."""
        ...

    @property
    def longest(self) -> int | None:
        """Characters that one token stands for at most; None where that isn't certain."""
        ...

    def vocabulary(self) -> str | ByteVocabulary:
        """For compiling grammars: the contents of a tokenizer.json, or the tokens' bytes."""
        ...


def library(module: str, extra: str, file: str) -> ModuleType:
    """A library that only some models need. Raises ModelError saying how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ModelError(
            f"{file} needs a library that isn't installed ({error}); install MegaInfer with its "
            f"extra: pip install 'megainfer[{extra}]'"
        ) from error
