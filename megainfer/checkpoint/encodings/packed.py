"""Integers of 4 or 8 bits packed into words along the inputs, as compressed-tensors stores them.

Stored with half of their range added. Zero points are packed along the outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.checkpoint.grid import Grid
from megainfer.checkpoint.headers import StoredTensor, TensorHeaders
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor

WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Packed:
    """`Encoding` of packed integers; sides: scales, the weight's shape, perhaps zero points."""

    codes: StoredTensor
    sides: tuple[StoredTensor, ...]
    grid: Grid
    bits: int

    @property
    def packed(self) -> int:
        return 1

    @property
    def flipped(self) -> bool:
        return False

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """See `Encoding.decode`."""
        from megainfer.checkpoint.codes import as_scales

        scales, shape, *zeros = sides
        self._check_shape(shape)
        values = self._unpack(codes)[:, : self.grid.shape[1]].contiguous()
        if zeros:
            self.grid.subtract(values, lines, self._zeros(zeros[0]))
        else:
            values.sub_(float(1 << (self.bits - 1)))
        self.grid.multiply(values, lines, as_scales(scales).view(self.grid.blocks))
        return values

    def _zeros(self, stored: "Tensor") -> "Tensor":
        """By block, with half of the codes' range added."""
        return self._unpack(stored.T).T[: self.grid.blocks[0]]

    def _unpack(self, words: "Tensor") -> "Tensor":
        from megainfer.checkpoint.codes import nibbles, octets

        return (nibbles(words) if self.bits == 4 else octets(words)).float()

    def _check_shape(self, shape: "Tensor") -> None:
        if shape.tolist() != list(self.grid.shape):
            raise self.sides[1].fail(
                f"is {shape.tolist()}, but config.json calls for {list(self.grid.shape)}"
            )


def packed(files: TensorHeaders, source: Source, quantization: QuantizationSpec) -> Packed:
    """Raises CheckpointError where a tensor is missing or misshapen, or inputs are reordered."""
    name = source.name
    if f"{name}_g_idx" in files:
        raise files.find(f"{name}_g_idx").fail(
            "reorders inputs between groups (actorder), which is not supported"
        )
    shape, per_word = source.entry_shape, WORD_BITS // quantization.bits
    grid = Grid.of((shape[0], shape[1]), quantization.block)
    outputs, groups = grid.blocks
    words = (shape[0], -(-shape[1] // per_word))
    sides = [
        grid.side(files.find(f"{name}_scale"), source),
        files.find(f"{name}_shape").part(source, (2,)),
    ]
    if not quantization.symmetric:
        zeros = (-(-outputs // per_word), groups)
        sides.append(files.find(f"{name}_zero_point").part(source, zeros, "I32"))
    codes = files.find(f"{name}_packed").part(source, words, "I32")
    return Packed(codes, tuple(sides), grid, quantization.bits)
