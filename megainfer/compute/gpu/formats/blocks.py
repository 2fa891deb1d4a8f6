"""Matrices cut into blocks of numbers that share a scale."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def blocks_of(weight: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix [N, K] as [blocks below each other, side by side, rows * columns], filled up with
    zeros."""
    height, width = weight.shape
    if height % rows or width % columns:
        weight = pad(weight, (0, -width % columns, 0, -height % rows))
    parts = weight.reshape(-(-height // rows), rows, -(-width // columns), columns)
    return parts.transpose(1, 2).flatten(2)


def joined(blocks: Tensor, rows: int, shape: torch.Size) -> Tensor:
    """The matrix of this shape that `blocks_of` cut."""
    parts = blocks.reshape(*blocks.shape[:2], rows, -1).transpose(1, 2)
    return parts.flatten(0, 1).flatten(1)[: shape[0], : shape[1]]


def reach(blocks: Tensor) -> Tensor:
    """The largest magnitude of each block."""
    least, largest = blocks.aminmax(dim=-1)
    return torch.maximum(-least, largest)
