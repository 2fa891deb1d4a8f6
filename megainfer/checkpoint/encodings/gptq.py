"""int4 or int8 as GPTQ's quantisers store it: transposed, packed along the inputs.

Zero points are packed along the outputs, less 1 in the older of the two forms. Which group an input
belongs to is a table's affair where inputs were quantised out of their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.checkpoint.headers import StoredTensor, TensorHeaders
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor

WORD_BITS = 32
TABLES = ("I32", "I64")


@dataclass(frozen=True, slots=True)
class Gptq:
    """`Encoding` of GPTQ's integers; a line is a word of inputs. sides: scales, zero points, and
    the groups of inputs where they are stored. group: inputs in a row of one group. offset: what
    zero points lack."""

    codes: StoredTensor
    sides: tuple[StoredTensor, ...]
    bits: int
    group: int
    offset: int

    @property
    def flipped(self) -> bool:
        return True

    @property
    def packed(self) -> int:
        return WORD_BITS // self.bits

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """See `Encoding.decode`."""
        import torch

        from megainfer.checkpoint.codes import as_scales

        scales, zeros, *tables = sides
        outputs = codes.shape[1]
        values = self._unpack(codes).view(len(lines), outputs, self.packed).mT
        values = values.reshape(-1, outputs).to(torch.float32)
        inputs = torch.arange(lines.start * self.packed, lines.stop * self.packed)
        groups = self._groups(tables[0], len(scales))[inputs] if tables else inputs // self.group
        points = self._unpack(zeros).to(torch.float32).add_(self.offset)
        return values.sub_(points[groups]).mul_(as_scales(scales)[groups])

    def _unpack(self, words: "Tensor") -> "Tensor":
        from megainfer.checkpoint.codes import nibbles, octets

        return nibbles(words) if self.bits == 4 else octets(words)

    def _groups(self, table: "Tensor", count: int) -> "Tensor":
        if table.numel() and not 0 <= int(table.min()) <= int(table.max()) < count:
            raise self.sides[2].fail(f"names groups that aren't there: scales have {count}")
        return table.long()


def gptq(files: TensorHeaders, source: Source, quantization: QuantizationSpec) -> Gptq:
    """Raises CheckpointError where a tensor is missing or misshapen."""
    outputs, inputs = source.entry_shape
    module = source.name.removesuffix(".weight")
    codes = files.find(f"{module}.qweight")
    per_word = WORD_BITS // quantization.bits
    for what, count in (("outputs", outputs), ("inputs", inputs)):
        if count % per_word:
            raise codes.fail(f"packs {count} {what}, which is not a multiple of {per_word}")
    group = quantization.block[1] or inputs
    groups = -(-inputs // group)
    sides = [
        files.find(f"{module}.scales").part(source, (groups, outputs)),
        files.find(f"{module}.qzeros").part(source, (groups, outputs // per_word), "I32"),
    ]
    table = f"{module}.g_idx"
    if table in files or quantization.reordered:
        stored = files.find(table)
        if stored.kind not in TABLES:
            raise stored.fail(f"is stored as {stored.kind}, but must be one of {TABLES}")
        sides.append(stored.part(source, (inputs,)))
    words = codes.part(source, (inputs // per_word, outputs), "I32")
    return Gptq(words, tuple(sides), quantization.bits, group, quantization.zero_offset)
