"""Products with a model's dense weights: torch's, or such that rows don't depend on each other."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.compute.gpu.kernels.products import multiply
from megainfer.device import Device


class Products(Protocol):
    """Of rows with weights that are kept by outputs.

    invariant: a row's result doesn't depend on what else is in its step; all that computes with
    these products keeps to it.
    """

    invariant: bool

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [T, K] @ weight.T + bias: weight [N, K], bias [N] -> [T, N], a new tensor."""

    def add(self, to: Tensor, x: Tensor, weight: Tensor, scale: float) -> None:
        """Add x [T, K] @ weight.T, times scale, to `to` [T, N]; weight: [N, K]."""

    def by_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """x[h] @ weight[h]: x [H, T, K], weight [H, K, N] -> [H, T, N], a new tensor."""


class TorchProducts:
    """`Products` by cuBLAS, which chooses by the number of rows how it adds them up."""

    invariant = False
    linear = staticmethod(linear)

    def add(self, to: Tensor, x: Tensor, weight: Tensor, scale: float) -> None:
        """See `Products.add`."""
        to.addmm_(x, weight.T, alpha=scale)

    def by_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Products.by_head`."""
        return torch.bmm(x, weight)


class InvariantProducts:
    """`Products` in one order, whatever else is multiplied with a row."""

    invariant = True

    def __init__(self, device: Device) -> None:
        self._device = device

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Products.linear`."""
        out = self._device.empty((len(x), len(weight)), x.dtype)
        multiply(self._device, x[None], weight[None], out[None], bias)
        return out

    def add(self, to: Tensor, x: Tensor, weight: Tensor, scale: float) -> None:
        """See `Products.add`."""
        multiply(self._device, x[None], weight[None], to[None], scale=scale)

    def by_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Products.by_head`."""
        out = self._device.empty((len(x), x.shape[1], weight.shape[2]), x.dtype)
        multiply(self._device, x, weight.mT, out)
        return out


def products_on(device: Device, invariant: bool) -> Products:
    return InvariantProducts(device) if invariant else TorchProducts()
