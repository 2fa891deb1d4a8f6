"""Normalisation of the residual stream in torch."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.reference import kernels as kernels
from megainfer.models.sources import Pieces
from megainfer.models.spec import NormKind, NormSpec


class Norm:
    """The normalisation before a half of a layer, or before the head."""

    def __init__(
        self, spec: NormSpec, weight: Pieces, bias: Pieces, reader: WeightReader, dtype: torch.dtype
    ) -> None:
        self._spec = spec
        self._weight = reader.load(weight, dtype)
        if spec.unit_offset:
            self._weight = 1 + self._weight
        self._bias = reader.load(bias, dtype) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., D], a new tensor."""
        if self._spec.kind is NormKind.LAYER:
            return layer_norm(x, self._weight.shape, self._weight, self._bias, self._spec.eps)
        normed = kernels.rms_norm(x, self._weight, self._spec.eps)
        return normed if self._bias is None else normed + self._bias
