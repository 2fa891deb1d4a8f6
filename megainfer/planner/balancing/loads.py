"""What nodes counted lately, as loads of experts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megainfer.planner.balancing.cost import ExpertLoad

LEAST_BATCHES = 20.0
"""Of each layer on each node, before anything is concluded from them."""
FADE = 0.25
"""What remains of what is known, each time that something is concluded from it: popularity
turns."""

_Counts = list[dict[int, float]]  # of each layer, by expert


class Loads:
    """Counters of expert nodes in, loads out; `fade` makes what is old count less.

    num_layers: those with experts.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._num_layers = num_layers
        self._num_experts = num_experts
        self._told: dict[int, Mapping[str, Any]] = {}
        self._windows: dict[int, _Window] = {}

    def hear(self, node: int, counters: Mapping[str, Any]) -> None:
        """What a node has counted since its start, see `ExpertNode.counters`."""
        before = self._told.get(node)
        self._told[node] = counters
        if before is not None and counters["batches"] >= before["batches"]:
            window = self._windows.setdefault(node, _Window(self._num_layers))
            window.add(before, counters)

    def forget(self, node: int) -> None:
        """It is there no more, or has started again."""
        self._told.pop(node, None)
        self._windows.pop(node, None)

    def fade(self) -> None:
        for window in self._windows.values():
            window.scale(FADE)

    def batches(self, nodes: Sequence[int]) -> float:
        """Of each layer, on that of these nodes that knows least."""
        known = (self._windows.get(node) for node in nodes)
        return min((w.batches / self._num_layers if w else 0.0 for w in known), default=0.0)

    def layer(self, position: int) -> list[ExpertLoad]:
        """Of each expert; position: of the layer among those with experts."""
        rows, hits = [0.0] * self._num_experts, [0.0] * self._num_experts
        for window in self._windows.values():
            batches = window.batches / self._num_layers
            if not batches:
                continue
            for expert, tokens in window.tokens[position].items():
                rows[expert] += tokens / batches
                hits[expert] += _hits(tokens, window.reads[position].get(expert, 0.0), batches)
        return [ExpertLoad(*own) for own in zip(rows, hits, strict=True)]

    def rows_of(self, position: int) -> float:
        """How many choices of a layer were counted, by which chance is judged."""
        return sum(sum(window.tokens[position].values()) for window in self._windows.values())


class _Window:
    """What one node has counted lately."""

    def __init__(self, num_layers: int) -> None:
        self.batches = 0.0  # over all layers
        self.tokens: _Counts = [{} for _ in range(num_layers)]
        self.reads: _Counts = [{} for _ in range(num_layers)]

    def add(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        self.batches += now["batches"] - before["batches"]
        for name, counts in (("expert_tokens", self.tokens), ("expert_reads", self.reads)):
            for layer, old, new in zip(counts, before[name], now[name], strict=True):
                for expert, count in new.items():
                    layer[expert] = layer.get(expert, 0.0) + count - old.get(expert, 0)

    def scale(self, factor: float) -> None:
        self.batches *= factor
        for counts in (self.tokens, self.reads):
            for layer in counts:
                for expert in layer:
                    layer[expert] *= factor


def _hits(tokens: float, reads: float, batches: float) -> float:
    """Of the share of batches that had some; as many as tokens where that is nearly all of them.

    >>> round(_hits(tokens=500, reads=500, batches=1000), 3)
    0.5
    >>> round(_hits(tokens=500, reads=100, batches=1000), 3)
    0.105
    """
    missed = max(1 - reads / batches, 0.5 / batches)
    return min(tokens / batches, -math.log(min(missed, 1.0)))
