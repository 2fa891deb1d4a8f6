"""tokenizer.json, read by the tokenizers library."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from megainfer.errors import ModelError
from megainfer.text.tokenizers.byte_alphabet import byte_alphabet
from megainfer.text.tokenizers.declared import DeclaredTokens
from megainfer.text.tokenizers.longest import longest_token

SHORT = 2048
"""Characters, or tokens, that are cheap to work on: no other thread runs meanwhile."""
CLEAN_UP = "clean_up_tokenization_spaces"
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class FastBackend:
    """See `TokenizerBackend`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(token for token, entry in added.items() if entry.special)
        # Whether the characters of a token stand for bytes, as in GPT-2's vocabulary.
        self._byte_level = "ByteLevel" in repr(backend.decoder)

    @classmethod
    def load(
        cls, path: Path, declared: DeclaredTokens, config: Mapping[str, Any] | None = None
    ) -> "FastBackend":
        """declared: tokens that the file may lack. config: tokenizer_config.json.

        What is added around a text (a beginning token, say) is what tokenizer.json says, as in
        transformers 5: `add_bos_token` in tokenizer_config.json has no effect beside it.

        Raises ModelError when the file is missing or isn't what it should be.
        """
        if not path.is_file():
            raise ModelError(f"{path} is missing; save the model's fast tokenizer there")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the only type that the library raises
            raise ModelError(f"{path} isn't a tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        declared.add_to(backend)
        config = config or {}
        backend.encode_special_tokens = bool(config.get("split_special_tokens"))
        if config.get(CLEAN_UP) and type(backend.model).__name__ != "BPE":
            raise ModelError(
                f"{path.parent}: {CLEAN_UP} changes texts after they are decoded, which isn't done "
                "here; set it to false in tokenizer_config.json"
            )
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, text: str) -> int | None:
        return self._backend.token_to_id(text)

    def piece(self, token: int) -> str | None:
        return self._backend.id_to_token(token)

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # A lone surrogate, such as a call's arguments may spell, is no text: the library raises.
        text = text.encode(errors="replace").decode()
        if len(text) <= SHORT:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        # Of the library's methods only those for batches let other threads run.
        special = add_special_tokens
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=special)
        return encoding.ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        if len(ids) <= SHORT:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        (text,) = self._backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return text

    @cached_property
    def longest(self) -> int | None:
        return longest_token(self._backend)

    def vocabulary(self) -> str:
        return self._backend.to_str()

    def bytes_of(self, token: int) -> bytes:
        piece = self.piece(token)
        if piece is None:
            return b""
        if self._is_spelled_in_bytes(token, piece):
            return bytes(self._byte_of[character] for character in piece)
        if (byte := BYTE_TOKEN.fullmatch(piece)) is not None:
            return bytes([int(byte[1], 16)])
        # Twice, because decoders treat the first token of a text apart (its leading space).
        once = self.decode([token], skip_special_tokens=False)
        twice = self.decode([token, token], skip_special_tokens=False)
        return twice[len(once) :].encode()

    def _is_spelled_in_bytes(self, token: int, piece: str) -> bool:
        """An added token is spelled as the text that it stands for."""
        return (
            self._byte_level and token not in self._added_ids and self._byte_of.keys() >= set(piece)
        )

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        return byte_alphabet()
