"""A grammar's state along one sequence."""

from typing import Self

from llguidance import LLMatcher

from megainfer.errors import MegaInferError

WORD_BYTES = 4  # masks are int32 words


class GrammarFailed(MegaInferError):
    """The grammar became too costly to follow, or doesn't allow a token that was generated."""


class TokenMatcher:
    """Follows the tokens of a sequence and says which may come next.

    vocab_size: the model's. after: until this token was generated, everything is allowed.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, after: int | None = None) -> None:
        self._matcher = matcher
        self._bytes = -(-vocab_size // (8 * WORD_BYTES)) * WORD_BYTES
        self._after = after

    def copy(self) -> Self:
        """Another sequence's, from here on."""
        twin = type(self).__new__(type(self))
        twin._matcher, twin._bytes, twin._after = self._matcher.deep_copy(), self._bytes, self._after
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

    def advance(self, token: int) -> None:
        """Take in a generated token that doesn't end the sequence. Raises GrammarFailed."""
        if self._after is None:
            self._matcher.consume_token(token)
            self._check()
        elif token == self._after:
            self._after = None

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(f"the grammar can't be followed: {self._matcher.get_error():.500}")
