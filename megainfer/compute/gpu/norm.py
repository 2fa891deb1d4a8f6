"""Normalisation of the residual stream on a GPU."""

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.gpu.kernels.norms import norm_rows
from megainfer.models.sources import Pieces
from megainfer.models.spec import NormSpec


class Norm:
    """The normalisation before a half of a layer, or before the head."""

    def __init__(
        self, spec: NormSpec, weight: Pieces, bias: Pieces, reader: WeightReader, dtype: torch.dtype
    ) -> None:
        self._spec, self._device = spec, reader.device
        self._weight = reader.load(weight, dtype)
        if spec.unit_offset:
            self._weight = 1 + self._weight
        self._bias = reader.maybe_load(bias, dtype)

    def __call__(self, x: Tensor, added: Tensor | None = None, residual: float = 1.0) -> Tensor:
        """x: [T, D], contiguous; a new tensor. Before, `added` [T, D], times residual, is added to
        x, in the same pass."""
        return norm_rows(self._device, x, self._weight, self._spec, self._bias, added, residual)
