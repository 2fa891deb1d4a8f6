"""The feed-forward half of a layer in C++, its routed experts excepted."""

import torch
from torch import Tensor

from megainfer.compute.batch import StepBatch
from megainfer.compute.cpu.kernels.attention import Chosen, PackedGate, pack_gate
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts
from megainfer.compute.cpu.kernels.routing import PackedRouter, pack_router
from megainfer.compute.cpu.loader import Loader
from megainfer.compute.half import Routed
from megainfer.compute.hash_table import load_hash_table
from megainfer.compute.reference.kernels import expert_homes
from megainfer.m2n.mailbox import Part
from megainfer.models.sources import FfnSources
from megainfer.models.spec import DenseSpec, MoESpec, SharedExpertSpec
from megainfer.topology import Placement


class Dense:
    """A whole feed-forward half without experts, its input norm included."""

    def __init__(self, spec: DenseSpec, sources: FfnSources, loader: Loader) -> None:
        self._kernel = loader.kernel
        self._residual = sources.spec.multipliers.residual
        self._norm = loader.norm(sources.norm(), sources.norm_bias())
        self._network = loader.network(
            spec.intermediate // sources.shard.ranks,
            spec.activation,
            sources.dense_gate_up(spec),
            sources.dense_down(spec),
        )

    def add(self, x: Tensor) -> None:
        hidden = self._kernel.norm(x, self._norm)
        x += _network_output(self._network, hidden, torch.full((len(x), 1), self._residual))


class SharedExpert:
    """The expert that every token visits, scaled by a sigmoid gate where it has one: its weight."""

    def __init__(
        self, spec: SharedExpertSpec, multiplier: float, sources: FfnSources, loader: Loader
    ) -> None:
        """multiplier: of all that it gives."""
        self._kernel = loader.kernel
        self._multiplier = multiplier
        self._gate = loader.exact_linear(sources.shared_gate()) if spec.gated else None
        self._network = loader.network(
            spec.intermediate // sources.shard.ranks,
            spec.activation,
            sources.shared_gate_up(spec),
            sources.shared_down(spec),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, D] -> [T, D]."""
        return _network_output(self._network, hidden, self._weights(hidden) * self._multiplier)

    def _weights(self, hidden: Tensor) -> Tensor:
        """float32 [T, 1]."""
        if self._gate is None:
            return torch.ones(len(hidden), 1)
        return self._kernel.sigmoid_(self._kernel.linear(self._gate, hidden.to(torch.float32)))


class Gate:
    """Norm, router and plan of a layer with experts."""

    def __init__(self, spec: MoESpec, sources: FfnSources, loader: Loader) -> None:
        self._kernel = loader.kernel
        self._dtype = loader.source.dtype
        self._layer = sources.layer
        self.packed = _pack_gate(spec, sources, loader)

    def place(self, placement: Placement) -> None:
        """In place: others point to what is packed."""
        self.packed.move(expert_homes(placement, self._layer))

    def forward(self, x: Tensor, batch: StepBatch) -> Routed:
        hidden = torch.empty(x.shape, dtype=self._dtype)
        ways = batch.ways if self.packed.homes.num_ways > 1 else None
        chosen = self._kernel.gate(self.packed, x, batch.token_ids, hidden, ways)
        return Routed(hidden, _parts(chosen))


def _pack_gate(spec: MoESpec, sources: FfnSources, loader: Loader) -> PackedGate:
    weight = sources.router(spec)
    dtype = torch.float32 if spec.router.wide else loader.source.dtype
    return pack_gate(
        loader.exact_linear(weight, sources.router_bias(spec), dtype) if weight else None,
        loader.norm(sources.norm(), sources.norm_bias()),
        expert_homes(loader.source.placement, sources.layer),
        _pack_router(spec, sources, loader),
    )


def _pack_router(spec: MoESpec, sources: FfnSources, loader: Loader) -> PackedRouter:
    reader = loader.source.reader
    return pack_router(
        spec.router,
        loader.source.dtype,
        reader.maybe_load(sources.selection_bias(spec), torch.float32),
        load_hash_table(spec, sources, reader),
    )


def _parts(chosen: Chosen) -> tuple[Part, ...]:
    return tuple(
        Part(chosen.rows[node, :count], chosen.ids[node, :count], chosen.weights[node, :count])
        for node, count in enumerate(chosen.counts)
    )


def _network_output(network: CpuLayerExperts, hidden: Tensor, weights: Tensor) -> Tensor:
    """The network's output for hidden [T, D], each row times its weight, float32 [T, 1]."""
    out = torch.empty_like(hidden)
    everyone = torch.zeros(len(hidden), 1, dtype=torch.int32)
    network.forward([hidden], [everyone], [weights], [out])
    return out
