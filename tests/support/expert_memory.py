"""What an expert's memory on a GPU means: each number by its format's formula, from where the
layout says that it is. Nothing is shared with the kernels that decode it or with what wrote it."""

import torch
from torch import Tensor

from megainfer.compute.gpu.formats.expert import ExpertLayout
from megainfer.compute.gpu.formats.matrix import Matrix
from tests.support.quantised import e2m1, e4m3

NUMBERS = {
    "e4m3": torch.tensor([e4m3(code) for code in range(256)]),
    "e2m1": torch.tensor([e2m1(code) for code in range(16)]),
    "int4": torch.arange(16).float(),
}


def weights_of(layout: ExpertLayout, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and up [2F, D], and down [D, F], in float32."""
    return _matrix(layout.gate_up, memory), _matrix(layout.down, memory)


def _matrix(matrix: Matrix, memory: Tensor) -> Tensor:
    form, outputs = matrix.format, matrix.parts * matrix.outputs
    codes = _part(memory, matrix.at, (outputs, matrix.stride), form.codes)
    inputs = torch.arange(matrix.inputs)
    if form.packed == 2:
        bytes_ = codes[:, inputs // 128 * 64 + inputs % 64]
        codes = torch.where(inputs % 128 >= 64, bytes_ >> 4, bytes_ & 15)
    else:
        codes = codes[:, inputs]
    numbers = NUMBERS[form.kind][codes.long()] if form.kind in NUMBERS else codes.float()
    if not form.rows:
        return numbers
    columns = torch.cat([_columns(matrix, part) for part in range(matrix.parts)])
    groups = inputs // form.group if form.group else torch.zeros_like(inputs)
    if form.exponents:
        words = (matrix.groups, matrix.scale_columns)
        stored = _part(memory, matrix.scales_at, words, torch.int32)[groups // 4][:, columns]
        scales = 2.0 ** ((stored >> (8 * (groups % 4))[:, None]) & 255).double().sub(127)
        return numbers * scales.T.float()
    shape = (matrix.groups, matrix.scale_columns)
    scales = _part(memory, matrix.scales_at, shape, torch.float32)[groups][:, columns]
    if form.zeros:
        zeros = _part(memory, matrix.zeros_at, shape, torch.uint8)[groups][:, columns]
        numbers = numbers - zeros.T.float()
    return numbers * scales.T


def _columns(matrix: Matrix, part: int) -> Tensor:
    own = matrix.scale_columns // matrix.parts
    return part * own + torch.arange(matrix.outputs) // matrix.format.rows


def _part(memory: Tensor, at: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    size = shape[0] * shape[1] * dtype.itemsize
    return memory[at : at + size].view(dtype).view(shape)
