"""Adding what the ranks of a node have made of the same rows."""

from collections.abc import Sequence

import torch
from torch import Tensor


def add_in_order(to: Tensor, parts: Sequence[Tensor]) -> None:
    """To `to` [R, D] the other ranks' parts of it, in float32 and in the order of ranks, so that
    the same rows always give the same bits; they are rounded to its dtype once."""
    total = to.to(torch.float32)  # itself where it is float32
    for part in parts:
        total += part
    if total is not to:
        to.copy_(total)
