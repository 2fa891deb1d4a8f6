"""How one weight is stored: which tensors on disk make it up, and what they mean."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from megainfer.checkpoint.headers import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor


class Encoding(Protocol):
    """One weight, or one entry of a fused one.

    flipped: a line of `codes` is a column of the weight, not a row. packed: how many of them it is.
    codes: the large tensor. sides: small ones (scales, zero points), which are read whole.
    """

    @property
    def packed(self) -> int: ...

    @property
    def flipped(self) -> bool: ...

    @property
    def codes(self) -> StoredTensor: ...

    @property
    def sides(self) -> tuple[StoredTensor, ...]: ...

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """The weight at these lines of `codes`, float32 unless it is stored as floating point."""
