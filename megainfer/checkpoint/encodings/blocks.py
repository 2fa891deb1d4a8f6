"""Blocks of ggml's types: codes with their scales between them, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megainfer.checkpoint.headers import StoredTensor
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """`Encoding` of one matrix; codes: a row's blocks as bytes. kind: ggml's name of the type."""

    codes: StoredTensor
    kind: str

    @property
    def packed(self) -> int:
        return 1

    @property
    def flipped(self) -> bool:
        return False

    @property
    def sides(self) -> tuple[StoredTensor, ...]:
        return ()

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """See `Encoding.decode`."""
        from megainfer.checkpoint.ggml import dequantise

        return dequantise(codes, self.kind)


def blocks(stored: StoredTensor, source: Source) -> Blocks:
    """Raises CheckpointError where the tensor is misshapen, or no matrix."""
    found = stored.shaped(source.stored_shape).split(source.entries).entry(source.index)
    if len(found.shape) != 2:
        raise stored.fail(f"is stored as {stored.kind}, as only matrices may be")
    rows = found.shape[0]
    return Blocks(replace(found, kind="U8", shape=(rows, found.size // rows)), stored.kind)
