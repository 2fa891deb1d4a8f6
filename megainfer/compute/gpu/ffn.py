"""The feed-forward half of a layer on a GPU, its routed experts excepted."""

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.gpu.homes import HomeTable
from megainfer.compute.gpu.kernels.activations import activate
from megainfer.compute.gpu.kernels.routing.gate import Router, route
from megainfer.compute.gpu.kernels.routing.plan import plan
from megainfer.compute.gpu.norm import Norm
from megainfer.compute.gpu.products import Products
from megainfer.compute.half import Routed
from megainfer.compute.hash_table import load_hash_table
from megainfer.models.sources import FfnSources
from megainfer.models.spec import DenseSpec, MoESpec, SharedExpertSpec
from megainfer.topology import Placement


class Dense:
    """A whole feed-forward half without experts, its input norm included."""

    def __init__(
        self,
        spec: DenseSpec,
        sources: FfnSources,
        reader: WeightReader,
        dtype: torch.dtype,
        products: Products,
    ) -> None:
        self._products = products
        self._device, self._activation = reader.device, spec.activation
        self._residual = sources.spec.multipliers.residual
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._gate_up = reader.load(sources.dense_gate_up(spec), dtype)
        self._down = reader.load(sources.dense_down(spec), dtype)

    def add(self, to: Tensor, x: Tensor) -> None:
        """To `to` [T, D], which may be x, in the pass that writes down's output."""
        gate_up = self._products.linear(self._norm(x), self._gate_up)
        inner = activate(self._device, gate_up, self._activation)
        self._products.add(to, inner, self._down, self._residual)


class Gate:
    """Where a MoE layer's feed-forward half leaves the attention node: norm, router, plan."""

    def __init__(
        self,
        spec: MoESpec,
        sources: FfnSources,
        reader: WeightReader,
        placement: Placement,
        dtype: torch.dtype,
        products: Products,
    ) -> None:
        self._products = products
        self.homes = HomeTable(placement, sources.layer, reader.device)
        self._device = reader.device
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._dtype = torch.float32 if spec.router.wide else dtype
        self._weight = reader.maybe_load(sources.router(spec), self._dtype)
        self._bias = reader.maybe_load(sources.router_bias(spec), self._dtype)
        self._router = Router(
            spec.router,
            reader.maybe_load(sources.selection_bias(spec), torch.float32),
            load_hash_table(spec, sources, reader),
        )

    def forward(self, x: Tensor, batch: StepBatch) -> Routed:
        """What the experts see, [T, D], and which rows of it go to each expert node."""
        hidden = self._norm(x)
        choices = route(
            self._device,
            self._logits(hidden),
            self._router,
            self.homes,
            batch.token_ids,
            batch.positions,
            batch.count,
        )
        return Routed(hidden, plan(self._device, choices, self.homes))

    def _logits(self, hidden: Tensor) -> Tensor:
        if self._weight is None:  # nobody looks at what isn't there
            return self._device.empty((len(hidden), self._router.spec.num_experts), self._dtype)
        return self._products.linear(hidden.to(self._dtype), self._weight, self._bias)


class SharedExpert:
    """The expert that every token visits, scaled by a sigmoid gate where it has one, and by the
    residual multiplier."""

    def __init__(
        self,
        spec: SharedExpertSpec,
        sources: FfnSources,
        reader: WeightReader,
        dtype: torch.dtype,
        products: Products,
    ) -> None:
        self._linear = products.linear
        self._device, self._activation = reader.device, spec.activation
        self._residual = sources.spec.multipliers.residual
        self._gate_up = reader.load(sources.shared_gate_up(spec), dtype)
        self._down = reader.load(sources.shared_down(spec), dtype)
        self._switch = reader.load(sources.shared_gate(), dtype) if spec.gated else None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, D] -> [T, D]."""
        switch = None if self._switch is None else self._linear(hidden, self._switch)
        gate_up = self._linear(hidden, self._gate_up)
        inner = activate(self._device, gate_up, self._activation, switch, self._residual)
        return self._linear(inner, self._down)
