"""Experts in C++ at every level of this machine, and what they are compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts, ExpertKernel
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.reference.kernels import Network, feed_forward

WEIGHT_DTYPES = ("float32", "bfloat16", "int8")
"""Of tests for which one product is as good as another."""


def levels() -> tuple[str, ...]:
    """Those that can run here; none where nothing was built."""
    return library.levels() if library.is_built() else ()


class Experts:
    """Random experts of one shape, as floats and packed for any level."""

    def __init__(self, shape: ExpertsShape, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        e, d, f = shape.experts, shape.hidden, shape.intermediate
        self.shape = shape
        self.gate_up = torch.randn(e, 2 * f, d, generator=generator) / d**0.5
        self.down = torch.randn(e, d, f, generator=generator) / f**0.5
        self.biases = (
            (
                torch.randn(e, 2 * f, generator=generator) / 2,
                torch.randn(e, d, generator=generator) / 2,
            )
            if shape.bias
            else None
        )
        self.generator = generator

    def packed(self, weight_dtype: str, level: str, threads: int = 1) -> CpuLayerExperts:
        kernel = ExpertKernel(self.shape, weight_dtype, threads, level)
        layer = CpuLayerExperts(kernel, self.shape.experts)
        for expert in range(self.shape.experts):
            layer.put(expert, self.prepared(layer, expert))
        return layer

    def prepared(self, layer: CpuLayerExperts, expert: int) -> object:
        return layer.prepare(self.gate_up[expert], self.down[expert], self.biases_of(expert))

    def biases_of(self, expert: int) -> tuple[Tensor, Tensor] | None:
        return None if self.biases is None else (self.biases[0][expert], self.biases[1][expert])

    def rows(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(count, self.shape.hidden, generator=self.generator).to(dtype)

    def choices(self, count: int, absent: bool = True) -> tuple[Tensor, Tensor]:
        """Random ids [R, K], some of them -1 unless told otherwise, and weights."""
        size = (count, self.shape.top_k)
        low = -1 if absent else 0
        ids = torch.randint(low, self.shape.experts, size, generator=self.generator)
        return ids.int(), torch.rand(size, generator=self.generator)

    def expected(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """A loop over rows and choices, in float64."""
        out = torch.zeros(x.shape, dtype=torch.float64)
        on_input = self.shape.weight_on_input
        for row, (own_ids, own_weights) in enumerate(zip(ids, weights, strict=True)):
            for expert, weight in zip(own_ids.tolist(), own_weights.tolist(), strict=True):
                if 0 <= expert < self.shape.experts:
                    before, after = (weight, 1.0) if on_input else (1.0, weight)
                    own = before * x[row, None].double()
                    out[row] += after * feed_forward(own, self._network(expert))[0]
        return out

    def _network(self, expert: int) -> Network:
        """In float64."""
        biases = self.biases_of(expert)
        return Network(
            self.gate_up[expert].double(),
            self.down[expert].double(),
            self.shape.activation,
            None if biases is None else (biases[0].double(), biases[1].double()),
        )


def run(layer: CpuLayerExperts, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """One message with all rows; what the slot held before must not matter."""
    out = torch.full_like(x, torch.nan)
    layer.forward([x], [ids], [weights], [out])
    return out


def run_split(
    layer: CpuLayerExperts, x: Tensor, ids: Tensor, weights: Tensor, sizes: Sequence[int]
) -> Tensor:
    """The same rows in several messages of one call."""
    out = torch.full_like(x, torch.nan)
    layer.forward(*(list(tensor.split(list(sizes))) for tensor in (x, ids, weights, out)))
    return out


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())
