"""What one expert node holds of a layer: how many of its experts are active, and how much it has
to do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Held:
    """The experts of one node.

    likelihoods: (probability that a token chooses it here, experts of which that is true). sent:
    the probability that a token is sent here at all, once however many of its experts are here.
    top_k: of a token, in all. spread: the standard deviation of a token's experts here.
    """

    likelihoods: tuple[tuple[float, int], ...]
    sent: float
    top_k: int
    spread: float

    @classmethod
    def of(cls, likelihoods: Sequence[float], counts: Sequence[float], top_k: int) -> "Held":
        """counts: the probability that 0, 1, … top_k of a token's experts are here."""
        mean = sum(number * p for number, p in enumerate(counts))
        variance = sum(p * (number - mean) ** 2 for number, p in enumerate(counts))
        likely = tuple(Counter(likelihoods).items())
        return cls(likely, 1 - counts[0], top_k, sqrt(max(0.0, variance)))

    @property
    def experts(self) -> int:
        return sum(count for _, count in self.likelihoods)

    @property
    def choices(self) -> float:
        """Experts here that a token chooses, on average."""
        return sum(likelihood * count for likelihood, count in self.likelihoods)

    def activated(self, rows: float) -> float:
        """Different experts that `rows` tokens choose here, on average: whose weights are read."""
        return float(active(likelihoods_of([self]), rows).sum())


def likelihoods_of(nodes: Sequence[Held]) -> Floats:
    """[nodes, experts]: the probability that a token chooses each expert of each node; 0 where a
    node has fewer than others."""
    table = np.zeros((len(nodes), max(node.experts for node in nodes)))
    for own, node in zip(table, nodes, strict=True):
        own[: node.experts] = [p for p, count in node.likelihoods for _ in range(count)]
    return table


def active(likelihoods: Floats, rows: float) -> Floats:
    """The probabilities that one of `rows` tokens chooses each: 1 - (1 - p) ** rows, to full
    precision also of few rows."""
    certain = likelihoods >= 1
    return np.where(certain, 1.0, -np.expm1(rows * np.log1p(-np.where(certain, 0.0, likelihoods))))


def active_at_most(probabilities: Floats) -> Floats:
    """[nodes, experts] -> [nodes, experts + 1]: the probability that at most 0, 1, 2, … of a node's
    experts are active, each of them independently with its own probability: Poisson binomial
    distributions.

    >>> active_at_most(np.array([[0.5, 0.5]])).tolist()
    [[0.25, 0.75, 1.0]]
    """
    nodes, experts = probabilities.shape
    exactly = np.zeros((nodes, experts + 1))
    exactly[:, 0] = 1.0
    for p in probabilities.T[:, :, None]:
        exactly[:, 1:] = exactly[:, 1:] * (1 - p) + exactly[:, :-1] * p
        exactly[:, :1] *= 1 - p
    return np.minimum(exactly.cumsum(axis=1), 1.0)
