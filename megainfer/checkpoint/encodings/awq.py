"""int4 as AWQ's `gemm` version stores it: transposed, packed along the outputs out of order."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from megainfer.checkpoint.files import StoredTensor, TensorFiles
from megainfer.checkpoint.grid import Grid, as_scales
from megainfer.checkpoint.nibbles import UNSIGNED, look_up
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.source import Source

OUTPUTS_A_WORD = 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Of eight outputs in a row, which four bits of their word, from the lowest, hold each."""


@dataclass(frozen=True, slots=True)
class Awq:
    """`Encoding` of AWQ's integers; a line is one input. sides: scales, zero points."""

    codes: StoredTensor
    sides: tuple[StoredTensor, ...]
    grid: Grid

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
    codes = look_up(words, UNSIGNED).view(len(words), -1, OUTPUTS_A_WORD)
    return codes[..., PLACES].flatten(1)
