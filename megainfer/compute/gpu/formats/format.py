"""A format of weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Quantised(NamedTuple):
    """One matrix [N, K]: a weight is (code - zero) * scale.

    codes: [N, K], a number each; those of 4 bits uint8. scales: [row blocks, groups], float32, or
    uint8 where they are exponents; None: there are none. zeros: uint8, like scales.
    """

    codes: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """kind: as kernels decode it, see `kernels.weights`. codes: dtype of codes in memory, packed
    of them in each. rows, group: how many outputs and inputs share a scale, a group of 0 being all
    inputs; rows of 0: there are no scales. exponents: scales are powers of two, a byte each.
    zeros: there are zero points. quantise: a float32 matrix.
    """

    name: str
    kind: str
    codes: torch.dtype
    quantise: Callable[[Tensor], Quantised]
    packed: int = 1
    rows: int = 0
    group: int = 0
    exponents: bool = False
    zeros: bool = False

    @property
    def chunk(self) -> int:
        """Inputs that lie together: a row is filled up with zeros to a multiple of it."""
        return 128 if self.rows else 64
