"""How often each expert of a layer was chosen, and how often its weights were read."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.device import Device
from megainfer.topology import EMPTY

PerExpert = dict[int, int]
"""By global id."""


class Tally:
    """Of one layer, counted by slot, since no host knows more in time, and told by expert: also of
    those that are here no more.

    tokens: int64 [slots], how many choices each slot has served, which others may add to.
    """

    def __init__(self, slots: int, device: Device) -> None:
        self._device = device
        self.tokens = device.upload(torch.zeros(slots, dtype=torch.int64))
        self._reads = device.upload(torch.zeros(slots, dtype=torch.int64))
        self._before = Counter[int](), Counter[int]()

    def add(self, counts: Tensor) -> None:
        """What one batch chose, int64 [slots]."""
        self.tokens.add_(counts)
        self._reads.add_(counts.sign())  # a comparison's result would have to be converted

    def told(self, held: Sequence[int]) -> tuple[PerExpert, PerExpert]:
        """Tokens served, and batches that had some, of each expert; held: what each slot holds."""
        ways = zip((self.tokens, self._reads), self._before, strict=True)
        tokens, reads = (self._by_expert(counts, before, held) for counts, before in ways)
        return tokens, reads

    def move(self, held: Sequence[int]) -> None:
        """Slots are about to hold something else than `held`."""
        for counts, before in zip((self.tokens, self._reads), self._before, strict=True):
            before.update(self._by_expert(counts, Counter(), held))
            counts.zero_()

    def _by_expert(self, counts: Tensor, before: Counter[int], held: Sequence[int]) -> PerExpert:
        now = self._device.read_back(counts).take()[: len(held)].tolist()
        told = dict(before)
        for expert, count in zip(held, now, strict=True):
            if expert != EMPTY:
                told[expert] = told.get(expert, 0) + count
        return told
