"""Where an attention node is, and what is served of those that are at one place."""

from dataclasses import dataclass
from typing import NamedTuple


class Batch(NamedTuple):
    """One layer of one micro-batch, to be served now."""

    micro_batch: int
    layer: int
    rows: dict[int, int]  # attention node -> its rows, at least 1; serve exactly these
    cohort: frozenset[int]  # who travels together, zero rows included; empty: this is a batch aside
    dropped: frozenset[int]  # who was waited for in vain and is of the cohort no more


@dataclass
class Place:
    """Where an attention node was last heard of in one micro-batch."""

    step: int  # counts its passes through the layers; comparable within a cohort only
    layer: int
    rows: int  # that wait here
    since: float
    misses: int  # how often the cohort went on without it in this step

    @property
    def position(self) -> tuple[int, int]:
        return self.step, self.layer

    def successor(self, layer: int, rows: int, now: float) -> "Place":
        if layer > self.layer:
            return Place(self.step, layer, rows, now, self.misses)
        return Place(self.step + 1, layer, rows, now, misses=0)

    @property
    def is_slow(self) -> bool:
        return self.misses > 1
