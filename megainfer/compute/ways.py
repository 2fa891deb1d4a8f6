"""Which of an expert's replicas a token goes to.

By the token alone, whatever else is in its batch, so that it always meets the same sums in the same
order: what is computed again, by whatever node, gives the same bits. Its position alone would send
requests that go in step to the same replica.
"""

from torch import Tensor

from megainfer.topology import WAYS

OF_TOKEN, OF_POSITION = 0x9E3779B1, 0x85EBCA77  # odd, as far from regular as 32 bits allow
SHIFT = 32 - (WAYS.bit_length() - 1)


def ways_of(token_ids: Tensor, positions: Tensor) -> Tensor:
    """One of WAYS for each token, about as many tokens each: int64 [T] both -> int64 [T]."""
    mixed = (token_ids * OF_TOKEN + positions * OF_POSITION) & 0xFFFFFFFF
    return mixed >> SHIFT
