"""One layer's routed experts in torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.compute.experts import Biases, ExpertsShape, bytes_of, fill_with
from megainfer.compute.reference.kernels.experts import (
    Network,
    choices_of_each,
    every_feed_forward,
    group_by_expert,
    grouped_feed_forward,
)
from megainfer.device import HOST, Device


class ReferenceLayerExperts:
    """`experts.LayerExperts` that computes in the dtype of its weights."""

    def __init__(self, shape: ExpertsShape, dtype: torch.dtype, device: Device = HOST) -> None:
        self._shape = shape
        self._dtype = dtype
        self._device = device
        self._networks: list[Network | None] = [None] * shape.experts
        self._filled = torch.zeros(shape.experts, dtype=torch.bool)

    def prepare(self, gate_up: Tensor, down: Tensor, biases: Biases | None = None) -> Network:
        """See `experts.LayerExperts.prepare`."""
        network = _empty_network(self._shape, self._dtype, self._device)
        network.gate_up.copy_(gate_up)
        network.down.copy_(down)
        assert (biases is None) == (network.biases is None)
        for own, bias in zip(network.biases or (), biases or (), strict=True):
            own.copy_(bias)
        return network

    def put(self, local_id: int, prepared: object) -> None:
        """See `experts.LayerExperts.put`."""
        assert isinstance(prepared, Network)
        assert self._networks[local_id] is None, f"slot {local_id} holds an expert"
        self._networks[local_id] = prepared
        self._filled[local_id] = True

    def take(self, local_id: int) -> Network:
        """See `experts.LayerExperts.take`."""
        held = self._networks[local_id]
        assert held is not None, f"slot {local_id} is empty"
        self._networks[local_id] = None
        self._filled[local_id] = False
        return held

    def forget(self, prepared: object) -> None:
        """See `experts.LayerExperts.forget`: torch frees it."""

    @property
    def form(self) -> str:
        """See `experts.LayerExperts.form`."""
        return f"reference {self._dtype}"

    @property
    def copied_bytes(self) -> int:
        """See `experts.LayerExperts.copied_bytes`."""
        shape = self._shape
        numbers = 3 * shape.intermediate * shape.hidden
        if shape.bias:
            numbers += 2 * shape.intermediate + shape.hidden
        return numbers * self._dtype.itemsize

    def copied(self, local_id: int) -> Tensor:
        """See `experts.LayerExperts.copied`."""
        held = self._networks[local_id]
        assert held is not None, f"slot {local_id} is empty"
        return bytes_of(_tensors(held))

    def adopt(self, copied: Tensor) -> Network:
        """See `experts.LayerExperts.adopt`."""
        network = _empty_network(self._shape, self._dtype, self._device)
        fill_with(_tensors(network), copied)
        return network

    @torch.inference_mode()
    def forward(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """See `experts.LayerExperts.forward`."""
        compute = self._on_host if self._device.is_host else self._on_device
        rows = _joined(hidden).to(self._dtype)
        if counts is not None:
            local_ids = [_counted(*own) for own in zip(local_ids, counts, strict=True)]
        result, chosen = compute(rows, _joined(weights), _joined(local_ids))
        sizes = [len(out) for out in outs]
        for out, part in zip(outs, result.split_with_sizes(sizes), strict=True):
            out.copy_(part)
        return chosen

    def _on_host(self, rows: Tensor, weights: Tensor, local_ids: Tensor) -> tuple[Tensor, Tensor]:
        """All rows' outputs, and how many choices each expert got."""
        groups = group_by_expert(self._known(local_ids), self._shape.experts)
        on_input = self._shape.weight_on_input
        result = grouped_feed_forward(rows, weights, groups, self._networks, on_input)
        return result, torch.tensor(groups.counts)

    def _known(self, local_ids: Tensor) -> Tensor:
        """Ids of experts that are here, else -1. A copy: the sender can write in its slot at any
        time, and what was checked must stay so."""
        own = local_ids.clone()
        own.masked_fill_((own < 0) | (own >= self._shape.experts), -1)
        return own.masked_fill_((own >= 0) & ~self._filled[own], -1)

    def _on_device(self, rows: Tensor, weights: Tensor, local_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The same, where nobody looks at what rows chose."""
        on_input = self._shape.weight_on_input
        result = every_feed_forward(rows, weights, local_ids, self._networks, on_input)
        return result, choices_of_each(local_ids, self._shape.experts)


def _empty_network(shape: ExpertsShape, dtype: torch.dtype, device: Device) -> Network:
    hidden, channels = shape.hidden, 2 * shape.intermediate
    return Network(
        device.empty((channels, hidden), dtype),
        device.empty((hidden, shape.intermediate), dtype),
        shape.activation,
        (device.empty((channels,), dtype), device.empty((hidden,), dtype)) if shape.bias else None,
    )


def _tensors(network: Network) -> tuple[Tensor, ...]:
    return network.gate_up, network.down, *(network.biases or ())


def _counted(local_ids: Tensor, count: Tensor | None) -> Tensor:
    """Ids of rows that count, else -1."""
    if count is None:
        return local_ids
    rows = torch.arange(len(local_ids), device=local_ids.device)
    return local_ids.masked_fill((rows >= count)[:, None], -1)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
