"""Bringing experts' weights in from the checkpoint."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.experts import Biases, LayerExperts
from megainfer.models.sources import ExpertSources, FfnSources
from megainfer.topology import EMPTY, WHOLE, Shard


class ExpertLoader:
    """Reads one expert after the other, or a rank's part of each, through the same memory; one a
    thread."""

    def __init__(self, sources: FfnSources, reader: WeightReader, shard: Shard = WHOLE) -> None:
        hidden = sources.spec.hidden_size
        intermediate = sources.spec.expert.intermediate // shard.ranks
        self._sources = sources
        self._shard = shard
        self._reader = reader
        self._gate_up = torch.empty(2 * intermediate, hidden)
        self._down = torch.empty(hidden, intermediate)

    def prepared(self, layer: LayerExperts, expert: int) -> object:
        """This expert, by its global id, for `LayerExperts.put`."""
        parts = self._sources.expert(expert, self._shard)
        self._reader.load_into(self._gate_up, parts.gate_up())
        self._reader.load_into(self._down, parts.down())
        return layer.prepare(self._gate_up, self._down, _biases(parts, self._reader))


def load_experts_into(
    layer: LayerExperts,
    sources: FfnSources,
    reader: WeightReader,
    slots: Sequence[int],
    shard: Shard = WHOLE,
) -> None:
    """Fill a layer's slots, one expert at a time in each thread: no more are ever held twice.

    slots: what each is to hold, a global id or EMPTY. shard: whose part of each expert.
    """

    def load(own: Sequence[tuple[int, int]]) -> None:
        loader = ExpertLoader(sources, reader, shard)
        for slot, expert in own:
            layer.put(slot, loader.prepared(layer, expert))

    reader.share(load, [(slot, e) for slot, e in enumerate(slots) if e != EMPTY])


def _biases(expert: ExpertSources, reader: WeightReader) -> Biases | None:
    if not expert.spec.expert.bias:
        return None
    gate_up: Tensor = reader.read(expert.gate_up_bias(), torch.float32)
    down = expert.down_bias()
    if not down:
        return gate_up, torch.zeros(expert.spec.hidden_size)
    return gate_up, reader.read(down, torch.float32)
