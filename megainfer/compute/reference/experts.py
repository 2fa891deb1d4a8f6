"""One layer's routed experts in torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.compute.experts import Biases, ExpertsShape
from megainfer.compute.reference.kernels.experts import (
    Network,
    group_by_expert,
    grouped_feed_forward,
)


class ReferenceLayerExperts:
    """`kernels.experts.LayerExperts` that computes in the dtype of its weights."""

    def __init__(self, shape: ExpertsShape, dtype: torch.dtype) -> None:
        self._shape = shape
        self._dtype = dtype
        self._networks = [_empty_network(shape, dtype) for _ in range(shape.experts)]

    def load(
        self, local_id: int, gate_up: Tensor, down: Tensor, biases: Biases | None = None
    ) -> None:
        """See `kernels.experts.LayerExperts.load`."""
        network = self._networks[local_id]
        network.gate_up.copy_(gate_up)
        network.down.copy_(down)
        assert (biases is None) == (network.biases is None)
        for own, bias in zip(network.biases or (), biases or (), strict=True):
            own.copy_(bias)

    @torch.inference_mode()
    def forward(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
    ) -> Tensor:
        """See `kernels.experts.LayerExperts.forward`."""
        groups = group_by_expert(_joined(local_ids), self._shape.experts)
        rows = _joined(hidden).to(self._dtype)
        result = grouped_feed_forward(
            rows, _joined(weights), groups, self._networks, self._shape.weight_on_input
        )
        sizes = [len(out) for out in outs]
        for out, part in zip(outs, result.split_with_sizes(sizes), strict=True):
            out.copy_(part)
        return torch.tensor(groups.counts)


def _empty_network(shape: ExpertsShape, dtype: torch.dtype) -> Network:
    hidden, channels = shape.hidden, 2 * shape.intermediate
    return Network(
        torch.empty(channels, hidden, dtype=dtype),
        torch.empty(hidden, shape.intermediate, dtype=dtype),
        shape.activation,
        (torch.empty(channels, dtype=dtype), torch.empty(hidden, dtype=dtype))
        if shape.bias
        else None,
    )


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
