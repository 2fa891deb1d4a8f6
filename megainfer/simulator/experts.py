"""Tokens that choose experts unevenly, and what that makes expert nodes do: no tensors, no clock.

Popularity falls off as in Zipf's law, with another order in each layer, and turns when it is told
to. Nodes count as real ones do, so that whoever moves experts can be tried on them.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from megainfer.topology import WAYS, Placement


@dataclass(frozen=True)
class Traffic:
    """What is asked. tokens: of one batch, that of all attention nodes together. exponent: of
    Zipf's law; 0: all experts are as popular. layers: their numbers."""

    layers: Sequence[int] = range(4)
    experts: int = 64
    top_k: int = 4
    tokens: int = 128
    exponent: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class NodeWork:
    """What one batch of one layer gave a node: experts read, and rows computed."""

    reads: int = 0
    rows: int = 0


class ExpertNodes:
    """Expert nodes with a placement, which may be changed between two batches."""

    def __init__(self, traffic: Traffic, placement: Placement) -> None:
        self.placement = placement
        self._traffic = traffic
        self._random = random.Random(traffic.seed)
        weights = (1 / (1 + rank) ** traffic.exponent for rank in range(traffic.experts))
        self._cumulated = list(accumulate(weights))
        self._batches = 0
        self._counts: dict[int, dict[str, list[dict[int, int]]]] = {}
        self.turn()

    def turn(self) -> None:
        """From now on others are popular."""
        self._popular = [self._shuffled() for _ in self._traffic.layers]

    def batch(self) -> list[list[NodeWork]]:
        """One batch through all layers; what each node does, by layer."""
        self._batches += 1
        ways = [self._random.randrange(WAYS) for _ in range(self._traffic.tokens)]
        return [self._layer(place, ways) for place in range(len(self._traffic.layers))]

    def counters(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Of each node, as `ExpertNode.counters`."""
        for node in range(self.placement.num_nodes):
            batches = self._batches * len(self._traffic.layers)
            yield node, {"batches": batches, **_copied(self._counts_of(node))}

    def _layer(self, place: int, ways: Sequence[int]) -> list[NodeWork]:
        homes = self.placement.homes(self._traffic.layers[place])
        shared = len(homes[0]) > 1
        chosen: list[dict[int, int]] = [{} for _ in range(self.placement.num_nodes)]
        for way in ways:
            for expert in self._choices(place):
                node, _ = homes[expert][way if shared else 0]
                chosen[node][expert] = chosen[node].get(expert, 0) + 1
        for node, own in enumerate(chosen):
            self._count(node, place, own)
        return [NodeWork(len(own), sum(own.values())) for own in chosen]

    def _choices(self, place: int) -> set[int]:
        chosen = set[int]()
        ranks = range(self._traffic.experts)
        while len(chosen) < self._traffic.top_k:
            (rank,) = self._random.choices(ranks, cum_weights=self._cumulated)
            chosen.add(self._popular[place][rank])
        return chosen

    def _shuffled(self) -> list[int]:
        order = list(range(self._traffic.experts))
        self._random.shuffle(order)
        return order

    def _count(self, node: int, place: int, chosen: Mapping[int, int]) -> None:
        counts = self._counts_of(node)
        tokens, reads = counts["expert_tokens"][place], counts["expert_reads"][place]
        for expert, count in chosen.items():
            tokens[expert] = tokens.get(expert, 0) + count
            reads[expert] = reads.get(expert, 0) + 1

    def _counts_of(self, node: int) -> dict[str, list[dict[int, int]]]:
        if node not in self._counts:
            layers = len(self._traffic.layers)
            names = ("expert_tokens", "expert_reads")
            self._counts[node] = {name: [{} for _ in range(layers)] for name in names}
        return self._counts[node]


def _copied(counts: Mapping[str, list[dict[int, int]]]) -> dict[str, Any]:
    return {name: [dict(layer) for layer in layers] for name, layers in counts.items()}
