"""The feed-forward half of a layer in torch, its routed experts excepted."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.half import Routed
from megainfer.compute.hash_table import load_hash_table
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.reference.norm import Norm
from megainfer.models.sources import FfnSources
from megainfer.models.spec import DenseSpec, MoESpec, SharedExpertSpec


class Dense:
    """A whole feed-forward half without experts, its input norm included."""

    def __init__(
        self, spec: DenseSpec, sources: FfnSources, reader: WeightReader, dtype: torch.dtype
    ) -> None:
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._network = kernels.Network(
            reader.load(sources.dense_gate_up(spec), dtype),
            reader.load(sources.dense_down(spec), dtype),
            spec.activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """What is added to x [T, D]."""
        return kernels.feed_forward(self._norm(x), self._network)


class Gate:
    """Where a MoE layer's feed-forward half leaves the attention node: norm, router, plan."""

    def __init__(
        self,
        spec: MoESpec,
        sources: FfnSources,
        reader: WeightReader,
        homes: kernels.Homes,
        dtype: torch.dtype,
    ) -> None:
        self.homes = homes  # may be replaced between steps
        self._on_host = reader.device.is_host
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._chooser = ExpertChooser(spec, sources, reader, dtype)
        self.shared = SharedExpert(spec.shared, sources, reader, dtype) if spec.shared else None

    def forward(self, x: Tensor, batch: StepBatch) -> Routed:
        """What the experts see, [T, D], and which rows of it go to each expert node."""
        hidden = self._norm(x)
        weights, ids = self._chooser.choose(hidden, batch.token_ids)
        ways = batch.ways if self.homes.num_ways > 1 else None
        if self._on_host:
            return Routed(hidden, kernels.scatter_plan(weights, ids, self.homes, ways))
        return Routed(hidden, kernels.padded_plan(weights, ids, self.homes, ways, batch.count))


class ExpertChooser:
    """Which experts a token chooses."""

    def __init__(
        self, spec: MoESpec, sources: FfnSources, reader: WeightReader, dtype: torch.dtype
    ) -> None:
        self._spec = spec.router
        self._dtype = torch.float32 if spec.router.wide else dtype
        self._weight = reader.maybe_load(sources.router(spec), self._dtype)
        self._bias = reader.maybe_load(sources.router_bias(spec), self._dtype)
        self._selection_bias = reader.maybe_load(sources.selection_bias(spec), torch.float32)
        self._table = load_hash_table(spec, sources, reader)

    def choose(self, hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and ids of the choices, [T, K]."""
        looked_up = None if self._table is None else self._table[token_ids]
        routing = kernels.Routing(self._selection_bias, looked_up)
        return kernels.route(self._logits(hidden), self._spec, routing)

    def _logits(self, hidden: Tensor) -> Tensor:
        if self._weight is None:
            return hidden.new_zeros(len(hidden), self._spec.num_experts)
        return linear(hidden.to(self._dtype), self._weight, self._bias)


class SharedExpert:
    """The expert that every token visits, scaled by a sigmoid gate where it has one."""

    def __init__(
        self, spec: SharedExpertSpec, sources: FfnSources, reader: WeightReader, dtype: torch.dtype
    ) -> None:
        self._network = kernels.Network(
            reader.load(sources.shared_gate_up(spec), dtype),
            reader.load(sources.shared_down(spec), dtype),
            spec.activation,
        )
        self._gate = reader.load(sources.shared_gate(), dtype) if spec.gated else None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [T, D] -> [T, D]."""
        output = kernels.feed_forward(hidden, self._network)
        return output if self._gate is None else torch.sigmoid(linear(hidden, self._gate)) * output
