"""One layer's routed experts in torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.kernels.experts import ExpertsShape
from megainfer.kernels.reference.experts import group_by_expert, grouped_feed_forward


class ReferenceLayerExperts:
    """`kernels.experts.LayerExperts` that computes in the dtype of its weights."""

    def __init__(self, shape: ExpertsShape, dtype: torch.dtype) -> None:
        experts, hidden, intermediate = shape.experts, shape.hidden, shape.intermediate
        self._gate_up = torch.empty(experts, 2 * intermediate, hidden, dtype=dtype)
        self._down = torch.empty(experts, hidden, intermediate, dtype=dtype)

    def load(self, local_id: int, gate_up: Tensor, down: Tensor) -> None:
        """See `kernels.experts.LayerExperts.load`."""
        self._gate_up[local_id] = gate_up
        self._down[local_id] = down

    @torch.inference_mode()
    def forward(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
    ) -> Tensor:
        """See `kernels.experts.LayerExperts.forward`."""
        groups = group_by_expert(_joined(local_ids), len(self._down))
        rows = _joined(hidden).to(self._down.dtype)
        result = grouped_feed_forward(rows, _joined(weights), groups, self._gate_up, self._down)
        sizes = [len(out) for out in outs]
        for out, part in zip(outs, result.split_with_sizes(sizes), strict=True):
            out.copy_(part)
        return torch.tensor(groups.counts)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
