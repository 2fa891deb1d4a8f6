"""int4 as AWQ's `gemm` version stores it: transposed, packed along the outputs out of order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.checkpoint.codes import nibbles
from megainfer.checkpoint.files import StoredTensor, TensorFiles
from megainfer.checkpoint.grid import Grid, as_scales
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.stored import Source

OUTPUTS_A_WORD = 8


@dataclass(frozen=True, slots=True)
class Awq:
    """`Encoding` of AWQ's integers; a line is one input. sides: scales, zero points."""

    codes: StoredTensor
    sides: tuple[StoredTensor, ...]
    grid: Grid

    @property
    def packed(self) -> int:
        return 1

    @property
    def flipped(self) -> bool:
        return True

    def decode(self, codes: Tensor, lines: range, sides: Sequence[Tensor]) -> Tensor:
        """See `Encoding.decode`."""
        scales, zeros = sides
        values = _unpack(codes)
        self.grid.subtract(values, lines, _unpack(zeros))
        self.grid.multiply(values, lines, as_scales(scales))
        return values


def awq(files: TensorFiles, source: Source, quantization: QuantizationSpec) -> Awq:
    """Raises CheckpointError where a tensor is missing or misshapen."""
    outputs, inputs = source.entry_shape
    module = source.name.removesuffix(".weight")
    codes = files.find(f"{module}.qweight")
    if outputs % OUTPUTS_A_WORD:
        raise codes.fail(f"packs {outputs} outputs, which is not a multiple of {OUTPUTS_A_WORD}")
    grid = Grid.of((inputs, outputs), (quantization.block[1], 1))
    groups, words = grid.blocks[0], outputs // OUTPUTS_A_WORD
    sides = (
        files.find(f"{module}.scales").part(source, (groups, outputs)),
        files.find(f"{module}.qzeros").part(source, (groups, words), "I32"),
    )
    return Awq(codes.part(source, (inputs, words), "I32"), sides, grid)


def _unpack(words: Tensor) -> Tensor:
    """A word has outputs 0, 2, 4 and 6 of eight, then 1, 3, 5 and 7: two swaps of bytes bring them
    in order, first of pairs (0 2 4 6 1 3 5 7 to 0 2 1 3 4 6 5 7), then of single ones."""
    eight = _swapped(_swapped(nibbles(words).view(torch.int64), 16, 0xFFFF0000), 8, 0xFF000000FF00)
    return eight.view(torch.uint8).to(torch.float32)


def _swapped(x: Tensor, bits: int, mask: int) -> Tensor:
    """With these bits of each number in place of those that are so many further up."""
    different = (x ^ (x >> bits)).bitwise_and_(mask)
    return x ^ different ^ (different << bits)
