"""The expert node's share of a model: the routed experts of every MoE layer that live here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.kernels import reference as kernels
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.sources import FfnSources
from megainfer.models.spec import ModelSpec
from megainfer.topology import Placement
from megainfer.weights import WeightReader


class ExpertModel:
    """Weights of one node's experts, and their computation for whatever rows arrive.

    Its only state is a count of the tokens that each expert has served.

    Raises CheckpointError when a weight is missing or misshapen.
    """

    def __init__(
        self,
        spec: ModelSpec,
        reader: WeightReader,
        placement: Placement,
        node: int,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.experts = placement.experts_of(node)
        self._layers = {
            layer: _load_layer(FfnSources(spec, layer), reader, self.experts, dtype)
            for layer in spec.moe_layers
        }
        self._tokens = {layer: [0] * len(self.experts) for layer in spec.moe_layers}

    @torch.inference_mode()
    def forward(self, layer: int, dispatches: Sequence[Dispatch], outs: Sequence[Tensor]) -> None:
        """Compute one layer's experts for all rows at once and write each dispatch's result.

        outs: one [R, D] a dispatch, in the same order; they are overwritten with the rows'
        outputs, weighted and summed over this node's experts.
        """
        hidden = _joined([dispatch.hidden for dispatch in dispatches])
        local_ids = _joined([dispatch.local_ids for dispatch in dispatches])
        weights = _joined([dispatch.weights for dispatch in dispatches])
        groups = kernels.group_by_expert(local_ids, len(self.experts))
        result = kernels.grouped_feed_forward(hidden, weights, groups, *self._layers[layer])
        sizes = [dispatch.num_rows for dispatch in dispatches]
        for out, rows in zip(outs, result.split_with_sizes(sizes), strict=True):
            out.copy_(rows)
        self._count(layer, groups.counts)

    def expert_tokens(self) -> list[list[int]]:
        """Tokens served so far, [MoE layer][local expert], the layers in the model's order."""
        return [list(counts) for counts in self._tokens.values()]

    def _count(self, layer: int, counts: Sequence[int]) -> None:
        tokens = self._tokens[layer]
        for expert, count in enumerate(counts):
            tokens[expert] += count


def _load_layer(
    sources: FfnSources, reader: WeightReader, experts: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(gate_up [E, 2F, D], down [E, D, F]) of one layer's experts, by local id."""
    hidden, intermediate = sources.spec.hidden_size, sources.spec.expert.intermediate
    gate_up = torch.empty(len(experts), 2 * intermediate, hidden, dtype=dtype)
    down = torch.empty(len(experts), hidden, intermediate, dtype=dtype)
    for local_id, expert in enumerate(experts):
        reader.load_into(gate_up[local_id], sources.expert_gate_up(expert))
        reader.load_into(down[local_id], sources.expert_down(expert))
    return gate_up, down


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
