"""FP8 and int8: a code an element, with a scale a block, channel or tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.checkpoint.codes import e4m3
from megainfer.checkpoint.files import StoredTensor, TensorFiles
from megainfer.checkpoint.grid import Grid, as_scales
from megainfer.models.quantization import Codes, QuantizationSpec
from megainfer.models.stored import Source

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

    def decode(self, codes: Tensor, lines: range, sides: Sequence[Tensor]) -> Tensor:
        """See `Encoding.decode`."""
        values = e4m3(codes) if codes.dtype.is_floating_point else codes.to(torch.float32)
        scales, *zeros = (side.view(self.grid.blocks) for side in sides)
        if zeros:
            self.grid.subtract(values, lines, zeros[0].to(torch.float32))
        self.grid.multiply(values, lines, as_scales(scales))
        return values


def scales_of(files: TensorFiles, name: str) -> str | None:
    """The name of this weight's scales, if it has some."""
    return next((name + suffix for suffix in SCALES if name + suffix in files), None)


def scaled(
    files: TensorFiles, scales: str, source: Source, quantization: QuantizationSpec
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
