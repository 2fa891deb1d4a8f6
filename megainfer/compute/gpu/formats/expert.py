"""Where the parts of one expert are in its memory, which is one piece: so a pointer is all that a
slot is, and all that changes when another expert comes into it."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from megainfer.compute.experts import Biases, ExpertsShape
from megainfer.compute.gpu.formats.format import WeightFormat
from megainfer.compute.gpu.formats.matrix import ALIGNMENT, Matrix


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Gate and up, down, then biases in float32 (two of F, one of D) where the shape has them.
    bytes: of all."""

    gate_up: Matrix
    down: Matrix
    gate_up_bias_at: int
    down_bias_at: int
    bytes: int

    @classmethod
    def of(cls, shape: ExpertsShape, weights: WeightFormat) -> Self:
        gate_up = Matrix(weights, 2, shape.intermediate, shape.hidden, 0)
        down = Matrix(weights, 1, shape.hidden, shape.intermediate, gate_up.end)
        down_bias_at = down.end + _floats(2 * shape.intermediate)
        end = down_bias_at + _floats(shape.hidden)
        return cls(gate_up, down, down.end, down_bias_at, end if shape.bias else down.end)

    def store(self, gate_up: Tensor, down: Tensor, biases: Biases | None) -> Tensor:
        """float32 [2F, D], [D, F] and biases as kernels have them: uint8 [bytes], on the host."""
        memory = torch.empty(self.bytes, dtype=torch.uint8)
        self.gate_up.store(gate_up, memory)
        self.down.store(down, memory)
        for bias, at in zip(biases or (), (self.gate_up_bias_at, self.down_bias_at), strict=False):
            memory[at : at + bias.nbytes].view(torch.float32).copy_(bias)
        return memory


def _floats(count: int) -> int:
    return -(-4 * count // ALIGNMENT) * ALIGNMENT
