"""Bringing experts' weights in from the checkpoint."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.experts import Biases, LayerExperts
from megainfer.models.sources import ExpertSources, FfnSources
from megainfer.topology import EMPTY


class ExpertLoader:
    """Reads one expert after the other through the same memory; one a thread."""

    def __init__(self, sources: FfnSources, reader: WeightReader) -> None:
        hidden, intermediate = sources.spec.hidden_size, sources.spec.expert.intermediate
        self._sources = sources
        self._reader = reader
        self._gate_up = torch.empty(2 * intermediate, hidden)
        self._down = torch.empty(hidden, intermediate)

    def prepared(self, layer: LayerExperts, expert: int) -> object:
        """This expert, by its global id, for `LayerExperts.put`."""
        parts = self._sources.expert(expert)
        self._reader.load_into(self._gate_up, parts.gate_up())
        self._reader.load_into(self._down, parts.down())
        return layer.prepare(self._gate_up, self._down, _biases(parts, self._reader))


def load_experts_into(
    layer: LayerExperts, sources: FfnSources, reader: WeightReader, slots: Sequence[int]
) -> None:
    """Fill a layer's slots, one expert at a time in each thread: no more are ever held twice.

    slots: what each is to hold, a global id or EMPTY.
    """

    def load(own: Sequence[tuple[int, int]]) -> None:
        loader = ExpertLoader(sources, reader)
        for slot, expert in own:
            layer.put(slot, loader.prepared(layer, expert))

    reader.share(load, [(slot, e) for slot, e in enumerate(slots) if e != EMPTY])


def _biases(expert: ExpertSources, reader: WeightReader) -> Biases | None:
    if not expert.spec.expert.bias:
        return None
    gate_up: Tensor = reader.read(expert.gate_up_bias(), torch.float32)
    return gate_up, reader.read(expert.down_bias(), torch.float32)
