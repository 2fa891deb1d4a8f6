"""What the C++ kernels are given: structures beside the tensors that they point into."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.models.spec import NormKind, NormSpec

_NORM_KINDS = {NormKind.RMS: 0, NormKind.LAYER: 1}


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """y = W x + bias with packed weights; `native` points into `panels` and `bias`."""

    native: library.Linear
    panels: Tensor
    bias: Tensor | None

    @property
    def outputs(self) -> int:
        return int(self.native.outputs)


@dataclass(frozen=True, slots=True)
class PackedNorm:
    """A normalisation; `native` points into `kept`."""

    native: library.Norm
    kept: tuple[Tensor, Tensor | None]

    @property
    def width(self) -> int:
        """Of the rows that it is of."""
        return len(self.kept[0])


def pack_norm(weight: Tensor, spec: NormSpec, bias: Tensor | None = None) -> PackedNorm:
    """weight, bias: float32 [n], what rows of n are multiplied with, and what is then added."""
    assert weight.dtype == torch.float32
    assert bias is None or (bias.dtype == torch.float32 and bias.shape == weight.shape)
    native = library.Norm(address(weight), optional_address(bias), spec.eps, _NORM_KINDS[spec.kind])
    return PackedNorm(native, (weight, bias))


def address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def optional_address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else address(tensor)
