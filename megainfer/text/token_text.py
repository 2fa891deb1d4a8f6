"""One token by itself, as log-probabilities show it: its bytes, and its text."""

from megainfer.text.tokenizer import Tokenizer

MAX_REMEMBERED = 65_536


class TokenTexts:
    """Bytes of a tokenizer's tokens, each worked out once.

    The bytes of a byte-level token, or of one that falls back to a byte, may be part of a
    character; the concatenation over a text is the text's UTF-8. Special tokens are spelled out.
    Without a tokenizer a token's text is its number, `token_id:<id>`.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._known: dict[int, bytes] = {}
        self._bytes_of = _numbered if tokenizer is None else tokenizer.bytes_of
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
