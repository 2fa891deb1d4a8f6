"""FP8 and int8: a code an element, with a scale a block, channel or tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.checkpoint.grid import Grid
from megainfer.checkpoint.headers import StoredTensor, TensorHeaders
from megainfer.models.quantization import Codes, QuantizationSpec
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {Codes.FP8: "F8_E4M3", Codes.INT8: "I8"}
SCALES = ("_scale_inv", "_scale")
"""What is appended to a weight's name; both are multiplied by."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """`Encoding` of elementwise codes; sides: scales, and zero points where there are some."""

    codes: StoredTensor
    sides: tuple[StoredTensor, ...]
    grid: Grid

    @property
    def packed(self) -> int:
        return 1

    @property
    def flipped(self) -> bool:
        return False

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """See `Encoding.decode`."""
        from megainfer.checkpoint.codes import as_scales, e4m3

        values = e4m3(codes) if codes.dtype.is_floating_point else codes.float()
        scales, *zeros = (side.view(self.grid.blocks) for side in sides)
        if zeros:
            self.grid.subtract(values, lines, zeros[0].float())
        self.grid.multiply(values, lines, as_scales(scales))
        return values


def scales_of(files: TensorHeaders, name: str) -> str | None:
    """The name of this weight's scales, if it has some."""
    return next((name + suffix for suffix in SCALES if name + suffix in files), None)


def scaled(
    files: TensorHeaders, scales: str, source: Source, quantization: QuantizationSpec
) -> Scaled:
    """Raises CheckpointError where a tensor is missing, misshapen or of another format."""
    stored = files.find(source.name)
    if stored.kind != KINDS.get(quantization.codes):
        raise stored.fail(
            f"is stored as {stored.kind} with scales, but config.json says {quantization}"
        )
    stored.check_shape(source.stored_shape)
    codes = stored.entry(source.index)
    # A channel is an output, whichever axis that is.
    block = quantization.block[::-1] if source.transposed else quantization.block
    grid = Grid.of(codes.shape, block)
    names = [scales] if quantization.symmetric else [scales, f"{source.name}_zero_point"]
    sides = tuple(grid.side(files.find(name), source) for name in names)
    return Scaled(codes, sides, grid)
