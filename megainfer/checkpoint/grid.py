"""Scales and zero points that several weights share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.checkpoint.headers import StoredTensor
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """A matrix of codes cut into blocks of `lines` x `columns`; those at its end may be smaller."""

    shape: tuple[int, int]
    lines: int
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, ...], block: tuple[int | None, int | None]) -> "Grid":
        """block: None for a whole axis."""
        height, width = shape
        lines, columns = block
        return cls((height, width), lines or height, columns or width)

    @property
    def blocks(self) -> tuple[int, int]:
        """How many there are, one below the other and side by side."""
        return -(-self.shape[0] // self.lines), -(-self.shape[1] // self.columns)

    def side(self, stored: StoredTensor, source: Source) -> StoredTensor:
        """The source's own of values that are stored by block; CheckpointError for another number.

        Axes of one element may be missing, and what is one for all experts may be stored so.
        """
        fused = source.index is not None and stored.shape[:1] == source.stored_shape[:1]
        side = stored.entry(source.index) if fused else stored
        if _significant(side.shape) != _significant(self.blocks):
            raise stored.fail(
                f"has shape {list(stored.shape)}, but a weight of {list(self.shape)} in blocks of "
                f"{self.lines} x {self.columns} takes {list(self.blocks)}"
            )
        return side

    def subtract(self, values: "Tensor", lines: range, table: "Tensor") -> None:
        """From `values`, these lines of the matrix, what `table` has for their blocks."""
        view, shared = self._meet(values, lines, table)
        view.sub_(shared)

    def multiply(self, values: "Tensor", lines: range, table: "Tensor") -> None:
        """`values`, these lines of the matrix, by what `table` has for their blocks."""
        view, shared = self._meet(values, lines, table)
        view.mul_(shared)

    def _meet(self, values: "Tensor", lines: range, table: "Tensor") -> "tuple[Tensor, Tensor]":
        """Views of both that meet element by element."""
        if self.lines == 1:
            rows = table[lines.start : lines.stop : lines.step]
        else:
            first = lines.start // self.lines
            near = table[first : lines[-1] // self.lines + 1].repeat_interleave(self.lines, 0)
            begin = lines.start - first * self.lines
            rows = near[begin : begin + lines[-1] - lines.start + 1 : lines.step]
        if self.columns == 1:
            return values, rows
        if self.shape[1] % self.columns == 0:
            return values.view(len(lines), -1, self.columns), rows[..., None]
        return values, rows.repeat_interleave(self.columns, 1)[:, : self.shape[1]]


def _significant(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]
