"""Where the numbers of one matrix are in memory, as kernels go through them.

Codes are rows of outputs, filled up with zeros to chunks of inputs. Of two codes in a byte the
upper one is half a chunk further on, not the next one: so each half of a chunk is consecutive
inputs in consecutive bytes, and a kernel unpacks it without moving anything between threads. Scales
and zero points are columns: those of neighbouring outputs lie together; of exponents, the four of a
chunk are a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from megainfer.compute.gpu.formats.format import WeightFormat

ALIGNMENT = 128
"""Bytes, of each part in memory."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`parts` matrices [outputs, inputs] below each other, each with scales of its own: gate and
    up, or down. at: where their bytes begin in an expert's."""

    format: WeightFormat
    parts: int
    outputs: int
    inputs: int
    at: int

    @property
    def stride(self) -> int:
        """Codes in memory from one output to the next."""
        return self.padded // self.format.packed

    @property
    def scale_columns(self) -> int:
        """Scales of a group: from one to the next."""
        return self.parts * -(-self.outputs // max(self.format.rows, 1))

    @property
    def groups(self) -> int:
        """Rows of scales in memory, and of zero points."""
        if not self.format.rows:
            return 0
        if self.format.exponents:
            return self.padded // self.format.chunk
        return self.padded // self.format.group if self.format.group else 1

    @property
    def scales_at(self) -> int:
        return self.at + _aligned(
            self.parts * self.outputs * self.stride * self.format.codes.itemsize
        )

    @property
    def zeros_at(self) -> int:
        return self.scales_at + _aligned(4 * self.groups * self.scale_columns)

    @property
    def end(self) -> int:
        """Behind the last byte."""
        size = self.groups * self.scale_columns if self.format.zeros else 0
        return self.zeros_at + _aligned(size)

    @property
    def padded(self) -> int:
        """Inputs with those that a row is filled up with."""
        chunk = self.format.chunk
        return -(-self.inputs // chunk) * chunk

    def store(self, weight: Tensor, memory: Tensor) -> None:
        """Quantise a float32 matrix [parts * outputs, inputs] into an expert's bytes, uint8."""
        found = [self.format.quantise(part) for part in weight.chunk(self.parts)]
        codes = torch.cat([self._packed(part.codes) for part in found])
        _put(memory, self.at, codes)
        if found[0].scales is not None:
            _put(memory, self.scales_at, self._columns([part.scales for part in found]))
        if found[0].zeros is not None:
            _put(memory, self.zeros_at, self._columns([part.zeros for part in found]))

    def _packed(self, codes: Tensor) -> Tensor:
        padded = pad(codes, (0, self.padded - self.inputs))
        if self.format.packed == 1:
            return padded
        low, high = padded.view(len(codes), -1, self.format.chunk).chunk(2, -1)
        return (low | high << 4).flatten(1)

    def _columns(self, parts: Sequence[Tensor | None]) -> Tensor:
        """By row block and group as they are in memory, groups without inputs filled in."""
        rows = torch.cat([part for part in parts if part is not None])
        if self.format.group:
            rows = pad(rows, (0, self.padded // self.format.group - rows.shape[1]))
        return rows.view(torch.int32).T if self.format.exponents else rows.T


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _put(memory: Tensor, at: int, values: Tensor) -> None:
    memory[at : at + values.nbytes].view(values.dtype).view(values.shape).copy_(values)
