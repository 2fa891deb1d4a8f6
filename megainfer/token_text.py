"""One token by itself, as log-probabilities show it: its bytes, and its text."""

import re
from collections.abc import Callable

from megainfer.tokenizer import Tokenizer

MAX_REMEMBERED = 65_536
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """Bytes of a tokenizer's tokens, each worked out once.

    The bytes of a byte-level token, or of one that falls back to a byte, may be part of a
    character; the concatenation over a text is the text's UTF-8. Special tokens are spelled out.
    Without a tokenizer a token's text is its number, `token_id:<id>`.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._known: dict[int, bytes] = {}
        self._bytes_of = _numbered if tokenizer is None else _reader(tokenizer)
        self._tokenizer = tokenizer

    def bytes_of(self, token: int) -> bytes:
        """The token's own bytes; ids that the tokenizer doesn't know have none."""
        found = self._known.get(token)
        if found is None:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            found = self._known[token] = self._bytes_of(token)
        return found

    def text_of(self, token: int) -> str:
        """With the replacement character for what isn't a whole character."""
        return self.bytes_of(token).decode(errors="replace")

    def is_silent(self, token: int, skip_special_tokens: bool) -> bool:
        """Whether it contributes nothing to an answer's text."""
        return self._tokenizer is None or self._tokenizer.is_silent(token, skip_special_tokens)


def _numbered(token: int) -> bytes:
    return f"token_id:{token}".encode()


def _reader(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    byte_of, byte_level = byte_alphabet(), tokenizer.is_byte_level

    def read(token: int) -> bytes:
        piece = tokenizer.piece(token)
        if piece is None:
            return b""
        if byte_level and byte_of.keys() >= set(piece) and not tokenizer.is_added(token):
            return bytes(byte_of[character] for character in piece)
        if (byte := BYTE_TOKEN.fullmatch(piece)) is not None:
            return bytes([int(byte[1], 16)])
        # Twice, because decoders treat the first token of a text apart (its leading space).
        once = tokenizer.decode([token], skip_special_tokens=False)
        twice = tokenizer.decode([token, token], skip_special_tokens=False)
        return twice[len(once) :].encode()

    return read


def byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (Radford et al., 2019):
    printable ones for themselves, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}
