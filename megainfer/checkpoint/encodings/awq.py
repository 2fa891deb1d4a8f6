"""int4 as AWQ's `gemm` version stores it: transposed, packed along the outputs out of order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.checkpoint.grid import Grid
from megainfer.checkpoint.headers import StoredTensor, TensorHeaders
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor

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

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """See `Encoding.decode`."""
        from megainfer.checkpoint.codes import as_scales, unpack_awq

        scales, zeros = sides
        values = unpack_awq(codes)
        self.grid.subtract(values, lines, unpack_awq(zeros))
        self.grid.multiply(values, lines, as_scales(scales))
        return values


def awq(files: TensorHeaders, source: Source, quantization: QuantizationSpec) -> Awq:
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
