"""Tokenizers whose tokens are bytes, as tiktoken's and Mistral's."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property

from megainfer.text.tokenizers.backend import ByteVocabulary


class BytePairBackend:
    """See `TokenizerBackend`. encode: ids of a text, by a library. before: ids that stand before
    every text. shown: ids of the vocabulary's special tokens that texts don't leave out."""

    def __init__(
        self,
        vocabulary: ByteVocabulary,
        encode: Callable[[str], list[int]],
        before: Sequence[int] = (),
        shown: Collection[int] = (),
    ) -> None:
        self._vocabulary = vocabulary
        self._encode = encode
        self._before = list(before)
        special = {token: text.encode() for text, token in vocabulary.special.items()}
        self._special_ids = frozenset(special).difference(shown)
        self._bytes = {token: data for data, token in vocabulary.ids.items()} | special

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def token_id(self, text: str) -> int | None:
        special = self._vocabulary.special.get(text)
        return self._vocabulary.ids.get(text.encode()) if special is None else special

    def piece(self, token: int) -> str | None:
        """Half a character is U+FFFD."""
        data = self._bytes.get(token)
        return None if data is None else data.decode(errors="replace")

    def bytes_of(self, token: int) -> bytes:
        return self._bytes.get(token, b"")

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # As tokenizer.json's libraries do: a lone surrogate is no text.
        ids = self._encode(text.encode(errors="replace").decode())
        return [*self._before, *ids] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        hidden = self._special_ids if skip_special_tokens else frozenset[int]()
        spelled = (self._bytes.get(token, b"") for token in ids if token not in hidden)
        return b"".join(spelled).decode(errors="replace")

    @cached_property
    def longest(self) -> int:
        return max(map(len, self._bytes.values()))

    def vocabulary(self) -> ByteVocabulary:
        return self._vocabulary
