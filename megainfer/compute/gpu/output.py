"""The projection from which an attention's output goes into the residual stream."""

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.gpu.products import Products
from megainfer.models.sources import Pieces


class Output:
    """What it gives is added, times `residual`, in the pass that makes the product."""

    def __init__(
        self,
        weight: Pieces,
        bias: Pieces,
        reader: WeightReader,
        dtype: torch.dtype,
        residual: float,
        products: Products,
    ) -> None:
        self._products = products
        self._weight = reader.load(weight, dtype)
        self._bias = reader.maybe_load(bias, dtype)
        self._residual = residual

    def add(self, x: Tensor, rows: Tensor) -> None:
        """To x [T, D] what is projected of rows [T, *]."""
        self._products.add(x, rows, self._weight, self._residual)
        if self._bias is not None:
            x.add_(self._bias, alpha=self._residual)
