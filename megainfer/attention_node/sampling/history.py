"""Which tokens a sequence holds, and how often it generated each. No tensors."""

from array import array
from collections.abc import Sequence

import numpy as np


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
        """Count what was appended to the sequence's tokens since the last call, which at
        first is the whole prompt."""
        if self._known < self._num_prompt:
            self._hold(distinct(token_ids[self._known : self._num_prompt]))
            self._known = self._num_prompt
        for position in range(self._known, len(token_ids)):
            token = token_ids[position]
            if token not in self._places:
                self._hold([token])
            self.generated[self._places[token]] += 1
        self._known = len(token_ids)

    def _hold(self, new: Sequence[int]) -> None:
        self._places.update((token, place) for place, token in enumerate(new, len(self.tokens)))
        self.tokens.extend(new)
        self.generated.extend([0.0] * len(new))


def distinct(token_ids: Sequence[int]) -> list[int]:
    """Each once, in the order in which they first come; a prompt may have a million."""
    _, first = np.unique(np.array(token_ids, dtype=np.int64), return_index=True)
    return [token_ids[position] for position in np.sort(first).tolist()]
