"""How one weight is stored: which tensors on disk make it up, and what they mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megainfer.checkpoint.files import StoredTensor
from megainfer.models.source import Source


class Encoding(Protocol):
    """One weight, or one entry of a fused one.

    flipped: a line of `codes` is a column of the weight, not a row. codes: the large tensor.
    sides: small ones (scales, zero points), which are read whole.
    """

    @property
    def flipped(self) -> bool: ...

    @property
    def codes(self) -> StoredTensor: ...

    @property
    def sides(self) -> tuple[StoredTensor, ...]: ...

    def decode(self, codes: Tensor, lines: range, sides: Sequence[Tensor]) -> Tensor:
        """The weight at these lines of `codes`, of floating point, as exact as float32."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that is the weight."""

    codes: StoredTensor
    flipped = False
    sides = ()

    def decode(self, codes: Tensor, lines: range, sides: Sequence[Tensor]) -> Tensor:
        return codes


FLOATS = ("F64", "F32", "BF16", "F16")


def plain(stored: StoredTensor, source: Source) -> Plain:
    """Raises CheckpointError where the tensor is misshapen or not of floating point."""
    if stored.kind not in FLOATS:
        raise stored.fail(
            f"is stored as {stored.kind}, which is not supported; supported: {', '.join(FLOATS)}"
        )
    if stored.shape != source.stored_shape:
        raise stored.fail(
            f"has shape {list(stored.shape)}, but config.json calls for {list(source.stored_shape)}"
        )
    return Plain(stored.entry(source.index))
