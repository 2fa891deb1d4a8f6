"""How often each expert of a node was chosen, and how often its weights were read."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.topology import EMPTY

PerExpert = dict[int, int]
"""By global id."""
Told = tuple[PerExpert, PerExpert]
"""Tokens that each expert has served, and batches that had some."""


class Tally:
    """Of all layers, counted by slot, since no host knows more in time, and told by expert: also of
    those that are here no more."""

    def __init__(self, layers: Sequence[int], slots: int, device: Device) -> None:
        self._device = device
        self._places = {layer: place for place, layer in enumerate(layers)}
        counts = torch.zeros(2, len(layers), slots, dtype=torch.int64)
        self._both = device.upload(counts)
        self._tokens, self._reads = self._both[0], self._both[1]
        self._before = {layer: (Counter[int](), Counter[int]()) for layer in layers}

    def tokens(self, layer: int) -> Tensor:
        """int64 [slots], how many choices each slot has served, which others may add to."""
        return self._tokens[self._places[layer]]

    def add(self, layer: int, counts: Tensor) -> None:
        """What one batch chose, int64 [slots]."""
        place = self._places[layer]
        self._tokens[place].add_(counts)
        self._reads[place].add_(counts.sign())  # a comparison's result would have to be converted

    def add_all(self, counts: Sequence[Tensor]) -> None:
        """`add` of a batch of each layer, in their order, in few passes."""
        stacked = torch.stack([*counts])
        self._tokens.add_(stacked)
        self._reads.add_(stacked.sign())

    def told(self, held: Mapping[int, Sequence[int]]) -> list[Told]:
        """Of each layer; held: what its slots hold."""
        tokens, reads = self._device.read_back(self._both).take().tolist()
        return [self._of(layer, slots, tokens, reads) for layer, slots in held.items()]

    def move(self, layer: int, held: Sequence[int]) -> None:
        """The layer's slots are about to hold something else than `held`."""
        ((tokens, reads),) = self.told({layer: held})
        self._before[layer] = Counter(tokens), Counter(reads)
        self._both[:, self._places[layer]].zero_()

    def _of(
        self,
        layer: int,
        held: Sequence[int],
        tokens: Sequence[Sequence[int]],
        reads: Sequence[Sequence[int]],
    ) -> Told:
        place = self._places[layer]
        served, batches = self._before[layer]
        return _told(served, held, tokens[place]), _told(batches, held, reads[place])


def _told(before: Counter[int], held: Sequence[int], now: Sequence[int]) -> PerExpert:
    told = dict(before)
    for expert, count in zip(held, now, strict=False):  # there may be more slots than are held
        if expert != EMPTY:
            told[expert] = told.get(expert, 0) + count
    return told
