"""MXFP4 as gpt-oss stores it: float4_e2m1fn, 32 of which share a power of two.

The weights that it quantises are fused and transposed, [E, inputs, outputs]; the codes are not:
[E, outputs, inputs / 32, 16 bytes].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.checkpoint.headers import StoredTensor, TensorHeaders
from megainfer.models.quantization import BLOCK_OF_MXFP4
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """`Encoding` of E2M1 codes; a line is one output. sides: exponents."""

    codes: StoredTensor
    sides: tuple[StoredTensor, ...]

    @property
    def packed(self) -> int:
        return 1

    @property
    def flipped(self) -> bool:
        return True

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """See `Encoding.decode`."""
        from megainfer.checkpoint.codes import as_scales, e2m1_pairs

        scales = as_scales(sides[0][lines.start : lines.stop : lines.step])
        return e2m1_pairs(codes).mul_(scales[..., None]).flatten(1)


def mxfp4(files: TensorHeaders, source: Source) -> Mxfp4:
    """Raises CheckpointError where a tensor is missing or misshapen."""
    inputs, outputs = source.entry_shape
    blocks = files.find(f"{source.name}_blocks")
    if inputs % BLOCK_OF_MXFP4:
        raise blocks.fail(f"holds {inputs} inputs, which is not a multiple of {BLOCK_OF_MXFP4}")
    groups = inputs // BLOCK_OF_MXFP4
    codes = blocks.part(source, (outputs, groups, BLOCK_OF_MXFP4 // 2), "U8")
    scales = files.find(f"{source.name}_scales").part(source, (outputs, groups), "U8")
    return Mxfp4(codes, (scales,))
