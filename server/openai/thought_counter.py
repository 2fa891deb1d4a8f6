"""How many of an answer's tokens are reasoning."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


class ThoughtCounter:
    """Counts the tokens before the end of thinking, a tag that opens it included.

    end: the token that ends it; tag: its text. decode: tells the text of tokens, special ones
    included; asked where no token is the end.
    """

    def __init__(self, end: int | None, tag: str, decode: Decode) -> None:
        self._end = end
        self._tag = tag
        self._decode = decode
        self._token_ids: list[int] = []
        self._characters = 0  # of reasoning
        self._ended = False

    def add(self, token_ids: Sequence[int], reasoning: str, thinking: bool | None) -> None:
        """reasoning: what came out of these. thinking: whether the text so far ends in it; None
        where that isn't certain yet."""
        if self._ended:
            return
        self._token_ids += token_ids
        self._characters += len(reasoning)
        if thinking is False:
            self._ended = True
            del self._token_ids[self._length() :]

    @property
    def count(self) -> int:
        """So far."""
        return len(self._token_ids) if self._characters else 0

    def _length(self) -> int:
        ids, decode = self._token_ids, self._decode
        if self._end is not None and self._end in ids:
            return ids.index(self._end)
        place = decode(ids).find(self._tag)
        if place < 0:  # a call has ended it
            return bisect_left(
                range(len(ids)), self._characters, key=lambda k: len(decode(ids[:k]))
            )
        # The tokens before the one in which the tag begins.
        return max(
            bisect_left(range(len(ids)), place + 1, key=lambda k: len(decode(ids[:k]))) - 1, 0
        )
