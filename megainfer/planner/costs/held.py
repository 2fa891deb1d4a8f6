"""What one expert node holds of a layer: how many of its experts are active, and how much it has
to do."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import expm1, log1p, sqrt


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
        return sum(count * p for p, count in self.activity(rows))

    def activity(self, rows: float) -> Iterator[tuple[float, int]]:
        """(probability that one of `rows` tokens chooses it, experts of which that is true)."""
        for likelihood, count in self.likelihoods:
            yield _at_least_once(likelihood, rows), count


def active_at_most(activity: Sequence[tuple[float, int]]) -> list[float]:
    """The probability that at most 0, 1, 2, … of these are active, each of them independently with
    its own probability: a Poisson binomial distribution.

    >>> [round(p, 3) for p in active_at_most([(0.5, 2)])]
    [0.25, 0.75, 1.0]
    """
    exactly = [1.0]
    for p, count in activity:
        for _ in range(count):
            exactly = [
                (exactly[n] * (1 - p) if n < len(exactly) else 0.0)
                + (exactly[n - 1] * p if n else 0.0)
                for n in range(len(exactly) + 1)
            ]
    below, total = [], 0.0
    for p in exactly:
        total += p
        below.append(min(1.0, total))
    return below


def _at_least_once(probability: float, rows: float) -> float:
    """1 - (1 - p) ** rows, to full precision also of few rows."""
    return 1.0 if probability >= 1 else -expm1(rows * log1p(-probability))
