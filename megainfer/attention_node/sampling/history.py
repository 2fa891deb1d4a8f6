"""Which tokens a sequence holds, and how often it generated each. No tensors."""

from array import array
from collections.abc import Sequence


class TokenHistory:
    """Distinct tokens in the order in which they first came, each with its count.

    It grows with its sequence, so that a step costs what is new, not what there is; the tokens
    that it has counted stay counted when the sequence loses its blocks. `tokens` and `generated`
    may be viewed as tensors, but not while `catch_up` runs: memory that is looked at can't grow.

    num_prompt: the first tokens, which weren't generated. with_prompt: whether they are held at
    all, with a count of 0 unless they are generated too.
    """

    def __init__(self, num_prompt: int, with_prompt: bool) -> None:
        self.tokens = array("q")
        self.generated = array("f")  # counts: exact up to 2^24, and ready to be multiplied
        self._places: dict[int, int] = {}
        self._num_prompt = num_prompt
        self._known = 0 if with_prompt else num_prompt

    def catch_up(self, token_ids: Sequence[int]) -> None:
        """Count what was appended to the sequence's tokens since the last call."""
        for position in range(self._known, len(token_ids)):
            place = self._place(token_ids[position])
            self.generated[place] += position >= self._num_prompt
        self._known = len(token_ids)

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.generated.append(0)
        return place
