"""A set of allowed tokens as bits, which is how grammar libraries give it."""

import numpy as np
import torch
from torch import Tensor

WORD_BITS = 32


def words_for(vocab_size: int) -> int:
    """Words of a mask for so many tokens."""
    return -(-vocab_size // WORD_BITS)


def forbid(logits: Tensor, mask: Tensor) -> None:
    """In place: of one row, float32 [V], what its mask doesn't allow becomes -inf.

    mask: int32 [ceil(V / 32)], on the CPU; token t is allowed where bit t % 32, the lowest being 0,
    of word t // 32 is set.
    """
    size = logits.shape[-1]
    assert mask.shape == (words_for(size),), f"a mask of {tuple(mask.shape)} for {size} tokens"
    bits = np.unpackbits(mask.numpy().view(np.uint8), count=size, bitorder="little")
    forbidden = torch.from_numpy(bits == 0).to(logits.device)
    logits.masked_fill_(forbidden, -torch.inf)
