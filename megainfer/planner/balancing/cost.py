"""What an expert costs a node: reading its weights, once a batch that chose it, and computing its
rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.topology import WAYS, Table


@dataclass(frozen=True, slots=True)
class ReadCost:
    """In times of one row. read: of reading an expert's weights. Rows are far less where experts
    are bound by memory; 4 is what the C++ kernels split their own work by."""

    read: float = 4.0
    row: float = 1.0


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Of one expert, in one batch of an expert node if it had all of its tokens. rows: tokens.
    hits: the mean number of the independent choices by which the batch has some, so that it has
    none with the probability e^-hits; tokens that choose alike make fewer hits than rows."""

    rows: float = 0.0
    hits: float = 0.0

    def cost(self, cost: ReadCost, share: float) -> float:
        """Of a holder with this share of the tokens."""
        return cost.read * -math.expm1(-self.hits * share) + cost.row * self.rows * share


Costs = tuple[tuple[float, ...], ...]
"""Of one layer: for each expert, what 0 to WAYS of its ways cost a node."""


def costs_of(loads: Sequence[ExpertLoad], cost: ReadCost) -> Costs:
    """Of a layer's experts."""
    return tuple(tuple(own.cost(cost, ways / WAYS) for ways in range(WAYS + 1)) for own in loads)


def node_costs(table: Table, costs: Costs) -> list[float]:
    """What a layer costs each expert node.

    >>> one, none = (0.0,) * 8 + (3.0,) * 8 + (5.0,), (0.0,) * 17
    >>> node_costs(Table(((0, 1), (0, -1)), ((8, 16), (8, 0))), (one, none))
    [3.0, 3.0]
    """
    return [
        sum(costs[expert][ways] for expert, ways in zip(held, own, strict=True) if ways)
        for held, own in zip(table.experts, table.ways, strict=True)
    ]
