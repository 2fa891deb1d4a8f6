"""A grammar's state along one sequence."""

from collections.abc import Iterable
from copy import copy
from typing import Self

from llguidance import LLMatcher

from megainfer.structured.grammar import GrammarFailed
from megainfer.structured.refusals import in_words

WORD_BYTES = 4  # masks are int32 words


class TokenMatcher:
    """Follows the tokens of a sequence and says which may come next.

    vocab_size: the model's. after: until this token was generated, everything is allowed.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, after: int | None = None) -> None:
        self._matcher = matcher
        self._bytes = -(-vocab_size // (8 * WORD_BYTES)) * WORD_BYTES
        self._after = after
        self.taken = 0  # tokens so far

    def copy(self) -> Self:
        """Another sequence's, from here on."""
        twin = copy(self)
        twin._matcher = self._matcher.deep_copy()
        return twin

    def mask(self) -> bytes | None:
        """Tokens that may come next: bit t % 32 of int32 word t // 32; None where all may.

        An end token may come only where the text is complete. Raises GrammarFailed.
        """
        if self._after is not None:
            return None
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask[: self._bytes]

    def take(self, tokens: Iterable[int]) -> None:
        """Follow tokens that were generated and don't end the sequence. Raises GrammarFailed."""
        for token in tokens:
            self.taken += 1
            if self._after is None:
                self._matcher.consume_token(token)
            elif token == self._after:
                self._after = None
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(
                f"the grammar can't be followed: {in_words(self._matcher.get_error())}"
            )
