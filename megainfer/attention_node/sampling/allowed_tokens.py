"""The only tokens that a request allows, as a mask that is made once."""

from collections.abc import Sequence

from megainfer.compute.bitmask import Bitmask, mask_of


class AllowedTokens:
    """Of one sequence; its list may be as long as the vocabulary, and is used at every step."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._mask: Bitmask | None = None

    def mask(self, vocab_size: int) -> Bitmask:
        """The vocabulary is always the same."""
        if self._mask is None:
            self._mask = mask_of(self._token_ids, vocab_size)
        return self._mask
