"""Experts on a GPU, interpreted, with what their weights mean as the oracle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.experts import ExpertPool, GpuLayerExperts, PreparedExpert
from megainfer.device import HOST, Device
from tests.support.expert_memory import weights_of
from tests.support.kernel_experts import Experts


class GpuExperts(Experts):
    """Random experts whose weights are what a format has kept of them."""

    def __init__(
        self,
        shape: ExpertsShape,
        weight_format: str = "float32",
        device: Device = HOST,
        invariant: bool = False,
    ) -> None:
        super().__init__(shape)
        self.pool = ExpertPool(shape, weight_format, device, invariant=invariant)
        for expert in range(shape.experts):
            stored = self.pool.layout.store(self.gate_up[expert], self.down[expert], None)
            self.gate_up[expert], self.down[expert] = weights_of(self.pool.layout, stored)

    def prepare(self, layer: GpuLayerExperts, expert: int) -> PreparedExpert:
        return layer.prepare(self.gate_up[expert], self.down[expert], self.biases_of(expert))

    def layer(self, absent: Sequence[int] = ()) -> GpuLayerExperts:
        layer = GpuLayerExperts(self.pool, self.shape.experts - len(absent))
        for expert in range(self.shape.experts):
            if expert not in absent:
                layer.put(expert, self.prepare(layer, expert))
        return layer

    def any_ids(self, count: int) -> Tensor:
        """Of experts that are here, and of none."""
        size = (count, self.shape.top_k)
        ids = torch.randint(-2, self.shape.experts + 2, size, generator=self.generator)
        return ids.int()


def forward(
    layer: GpuLayerExperts,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """The rows' outputs, from one message or several of these sizes; the memory around the outs
    stays as it was."""
    sizes = [len(x)] if sizes is None else list(sizes)
    memory = torch.full((len(x) + 2, x.shape[1]), 7, dtype=x.dtype)
    out = memory[1:-1].fill_(torch.nan)
    layer.forward(*(list(tensor.split(sizes)) for tensor in (x, ids, weights, out)))
    assert (memory[[0, -1]] == 7).all()
    return out
