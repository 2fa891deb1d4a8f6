"""The expert node's share of a model: the routed experts of every MoE layer that live here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.backend import Backend
from megainfer.compute.chain import CountedExperts
from megainfer.compute.experts import ExpertsShape, LayerExperts
from megainfer.errors import ConfigError
from megainfer.expert_node.loading import load_experts_into
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.sources import FfnSources
from megainfer.models.spec import ModelSpec
from megainfer.topology import EMPTY, Placement


class ExpertModel:
    """Weights of one node's experts, and their computation for whatever rows arrive.

    Its only state is a count of the tokens that each expert has served.

    Raises CheckpointError when a weight is missing or misshapen, and what `Backend.experts` does.
    """

    def __init__(
        self,
        spec: ModelSpec,
        reader: WeightReader,
        placement: Placement,
        node: int,
        backend: Backend,
    ) -> None:
        self.spec = spec
        self.node = node
        self.held = placement.slots_of(node)  # by layer, what each slot holds
        shape = ExpertsShape(
            spec.num_experts,  # as many as there can ever be here
            spec.hidden_size,
            spec.expert.intermediate,
            spec.top_k,
            spec.expert.activation,
            spec.expert.bias,
            spec.expert.weight_on_input,
        )
        new_layer = backend.experts(shape)
        self._layers = {n: new_layer(len(placement.experts_of(node, n))) for n in spec.moe_layers}
        for layer, experts in self._layers.items():
            load_experts_into(experts, FfnSources(spec, layer), reader, self.held[layer])
        self._device = backend.device
        self._tokens = {layer: self._zeros(shape.experts) for layer in spec.moe_layers}

    def check_holds(self, placement: Placement) -> None:
        """Raises ConfigError unless exactly what is loaded here is here by this placement too:
        local ids are slots."""
        for layer, experts in placement.slots_of(self.node).items():
            if experts != self.held[layer]:
                raise ConfigError(
                    f"expert node {self.node} holds the experts {list(self.held[layer])} of layer "
                    f"{layer}, by the new placement it has {list(experts)}"
                )

    def forward(self, layer: int, dispatches: Sequence[Dispatch], outs: Sequence[Tensor]) -> None:
        """Compute one layer's experts for all rows at once and write each dispatch's result.

        outs: one [R, D] a dispatch, in the same order; they are overwritten with the rows'
        outputs, weighted and summed over this node's experts.
        """
        counts = self._layers[layer].forward(
            [dispatch.hidden for dispatch in dispatches],
            [dispatch.local_ids for dispatch in dispatches],
            [dispatch.weights for dispatch in dispatches],
            outs,
        )
        self._tokens[layer].add_(counts)

    def layer(self, layer: int) -> LayerExperts:
        """The experts of one MoE layer."""
        return self._layers[layer]

    @property
    def by_layer(self) -> dict[int, CountedExperts]:
        """The experts of all MoE layers with what they count in, for those who compute with them
        by themselves."""
        return {n: CountedExperts(own, self._tokens[n]) for n, own in self._layers.items()}

    def expert_tokens(self) -> list[dict[int, int]]:
        """Tokens served so far by each expert, by its global id; of each MoE layer, in the model's
        order."""
        told = {layer: self._device.read_back(tokens) for layer, tokens in self._tokens.items()}
        return [_by_expert(self.held[layer], tokens.take()) for layer, tokens in told.items()]

    def _zeros(self, experts: int) -> Tensor:
        return self._device.upload(torch.zeros(experts, dtype=torch.int64))


def _by_expert(held: Sequence[int], counts: Tensor) -> dict[int, int]:
    pairs = zip(held, counts[: len(held)].tolist(), strict=True)
    return {expert: count for expert, count in pairs if expert != EMPTY}
