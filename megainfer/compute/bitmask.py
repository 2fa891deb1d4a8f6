"""A set of allowed tokens as bits, which is how grammar libraries give it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORD_BITS = 32

Bitmask = npt.NDArray[np.int32]
"""[ceil(V / 32)]: token t is allowed where bit t % 32 (the lowest is 0) of word t // 32 is set."""


def words_for(vocab_size: int) -> int:
    """Words of a mask for so many tokens."""
    return -(-vocab_size // WORD_BITS)


def mask_of(token_ids: Sequence[int], vocab_size: int) -> Bitmask:
    """The mask that allows these tokens."""
    allowed = np.zeros(words_for(vocab_size) * WORD_BITS, dtype=np.bool_)
    allowed[np.asarray(token_ids, dtype=np.int64)] = True
    return np.packbits(allowed, bitorder="little").view(np.int32)
