"""Tokens to text while they come: whole characters only, ended by the first stop string."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from megainfer.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"

# A character has at most four bytes, so it is complete after at most four tokens. Text that
# still ends in the replacement character later than this holds bytes that are no character.
MAX_PENDING = 8
MAX_INCOMPLETE = 3


class IncrementalDetokenizer:
    """Pieces of text, token by token, whose concatenation is the text of all tokens.

    A short window of tokens is decoded each time, with those before the new ones as context, since
    decoders treat the first token of a text apart (its leading space). A piece is given out only
    once its last character is complete.

    after: the tokens that the text continues; without them it is a text of its own.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, after: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._context = 0  # tokens of the window that end at a complete character, given out
        self._given = 0  # characters of the window's text that were given out
        before = list(after[-MAX_PENDING:])
        text = self._decode(before)
        if not text.endswith(REPLACEMENT):  # else the new tokens have their own half of a character
            self._window, self._context, self._given = before, len(before), len(text)

    def push(self, token: int) -> str:
        """The text that this token completes; often its own, empty inside a character."""
        if self._tokenizer.is_silent(token, self._skip_special_tokens):
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        unfinished = text.endswith(REPLACEMENT)
        pending = len(self._window) - self._context
        if (unfinished or len(text) <= self._given) and pending < MAX_PENDING:
            return ""
        return self._give(text, held=1 if unfinished else 0)

    def flush(self) -> str:
        """What is still held back, at the end of the sequence."""
        if len(self._window) == self._context:  # nothing is
            return ""
        text = self._decode(self._window)
        piece = text[self._given :]
        self._given = len(text)
        return piece

    def _give(self, text: str, held: int) -> str:
        """Give out all but the last `held` characters, and forget tokens no longer needed."""
        piece = text[self._given : len(text) - held]
        if held:
            self._window = self._window[-MAX_INCOMPLETE:]
            self._context = 0
        else:
            self._window = self._window[self._context :]
            self._context = len(self._window)
        self._given = len(self._decode(self._window)) - held
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, self._skip_special_tokens)


class StopStrings:
    """Cuts a text, which comes in pieces, at the first of some strings: before it, or after it
    where it is `included`.

    Text that may be the beginning of one of them is held back. `matched` is the string that ended
    the text, or None. A character takes a bounded time, however long and alike the strings are
    (Knuth, Morris and Pratt).
    """

    def __init__(self, stops: Sequence[str], included: bool = False) -> None:
        self._stops = [(stop, borders(stop)) for stop in stops]
        self._begun = [0] * len(self._stops)  # characters of each with which the text ends
        self._included = included
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str, may_end: bool = True) -> str:
        """The text that is now certain; after a match that is all of it.

        may_end: whether a string may be completed by this piece; else it is passed over.
        """
        if not self._stops:
            return piece
        text = self._held + piece
        # The one that is complete first, so that the result doesn't depend on the pieces.
        found = min(self._completed(piece, may_end), default=None)
        if found is not None:
            end, _, self.matched = found
            end += len(self._held)
            self._held = ""
            return text[: end if self._included else end - len(self.matched)]
        border = len(text) - max(self._begun)
        self._held = text[border:]
        return text[:border]

    def _completed(self, piece: str, may_end: bool) -> Iterator[tuple[int, int, str]]:
        """Of each string where in the piece it ends first; the longer goes first of several."""
        for place, (stop, border) in enumerate(self._stops):
            begun = self._begun[place]
            if not begun and stop[0] not in piece:
                continue
            for end, character in enumerate(piece, start=1):
                while begun and stop[begun] != character:
                    begun = border[begun - 1]
                begun += stop[begun] == character
                if begun == len(stop):
                    if may_end:
                        yield end, -len(stop), stop
                        break
                    begun = border[begun - 1]
            self._begun[place] = begun

    def flush(self) -> str:
        """What is still held back, at the end of the sequence."""
        held, self._held = self._held, ""
        return held


@lru_cache(maxsize=1024)
def borders(text: str) -> tuple[int, ...]:
    """Of each beginning of a text, how long a shorter one is with which it ends.

    >>> borders("abab")
    (0, 0, 1, 2)
    """
    found, size = [0], 0
    for character in text[1:]:
        while size and text[size] != character:
            size = found[size - 1]
        size += text[size] == character
        found.append(size)
    return tuple(found)


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
