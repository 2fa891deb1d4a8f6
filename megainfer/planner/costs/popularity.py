"""Which experts tokens choose."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from megainfer.errors import ConfigError
from megainfer.models.spec import ExpertGroups, RouterSpec


@dataclass(frozen=True, slots=True)
class Popularity:
    """Each token chooses a set of top_k different experts, with a probability in proportion to the
    product of its members' weights, independently of other tokens.

    With equal weights every set is as likely, which gives the published formulas: an expert is
    chosen with probability K / E, a node with E / N experts with 1 - C(E - E/N, K) / C(E, K).
    groups: where experts may be chosen from some groups only; each choice of groups counts as
    equally likely, and they are looked at with equal weights only.
    """

    weights: tuple[float, ...]
    top_k: int
    groups: ExpertGroups | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= len(self.weights):
            raise ConfigError(f"a token can't choose {self.top_k} of {len(self.weights)} experts")
        if not min(self.weights) > 0:
            raise ConfigError(f"an expert's weight is {min(self.weights)}, but must be more than 0")

    @classmethod
    def uniform(cls, experts: int, top_k: int) -> "Popularity":
        return cls((1.0,) * experts, top_k)

    @classmethod
    def zipf(cls, experts: int, top_k: int, exponent: float) -> "Popularity":
        """The r-th most popular expert has weight r ** -exponent; 0 is uniform."""
        return cls(tuple(rank**-exponent for rank in range(1, experts + 1)), top_k)

    @classmethod
    def of(cls, router: RouterSpec, exponent: float = 0.0) -> "Popularity":
        """As `zipf`, for this router."""
        zipf = cls.zipf(router.num_experts, router.top_k, exponent)
        return cls(zipf.weights, zipf.top_k, router.groups)

    @property
    def experts(self) -> int:
        return len(self.weights)

    @property
    def is_uniform(self) -> bool:
        return min(self.weights) == max(self.weights)

    def chosen(self) -> tuple[float, ...]:
        """The probability that a token chooses each expert; their sum is top_k."""
        return _chosen(self)


def counts_inside(
    popularity: Popularity, nodes: Sequence[Mapping[int, float]]
) -> Iterator[list[float]]:
    """Of each node the probability that 0, 1, … top_k of a token's experts are there.

    nodes: all of them, by expert the part of its tokens that go there; an expert's parts are of
    different nodes, and add up to 1.
    """
    k, scale = popularity.top_k, max(popularity.weights)
    weights = [weight / scale for weight in popularity.weights]
    shared = {e for own in nodes for e, part in own.items() if part < 1}
    alone = [_prefixes([weights[e] for e in own if e not in shared], k)[-1] for own in nodes]
    # Of those before and those behind each node; nothing is divided, so that nothing cancels.
    before, behind = _products(alone, k), _products(alone[::-1], k)[::-1]
    for node, own in enumerate(nodes):
        others = _product(before[node], behind[node + 1], k)
        for e in shared - own.keys():
            others = _times(others, weights[e])
        ways = [[here * there for there in others] for here in alone[node]]
        for e in own.keys() & shared:
            ways = _divided(ways, weights[e] * own[e], weights[e] * (1 - own[e]))
        counts = [ways[n][k - n] for n in range(k + 1)]
        yield [way / sum(counts) for way in counts]


def _times(sums: Sequence[float], weight: float) -> list[float]:
    """Sums over sets of 0..k, with one more expert that may be in them."""
    return [1.0, *(sums[n] + weight * sums[n - 1] for n in range(1, len(sums)))]


def _divided(ways: Sequence[Sequence[float]], here: float, there: float) -> list[list[float]]:
    """The same of sets of n here and j elsewhere, with an expert that is in one of both places."""
    size = len(ways)
    return [
        [
            ways[n][j]
            + (here * ways[n - 1][j] if n else 0.0)
            + (there * ways[n][j - 1] if j else 0.0)
            for j in range(size)
        ]
        for n in range(size)
    ]


def _product(one: Sequence[float], other: Sequence[float], k: int) -> list[float]:
    """Sums over sets of 0..k of experts of both."""
    return [sum(one[i] * other[n - i] for i in range(n + 1)) for n in range(k + 1)]


def _products(parts: Sequence[Sequence[float]], k: int) -> list[list[float]]:
    """Of the first 0, 1, 2, … of them."""
    found = [[1.0] + [0.0] * k]
    for part in parts:
        found.append(_product(found[-1], part, k))
    return found


@lru_cache(maxsize=64)
def _chosen(popularity: Popularity) -> tuple[float, ...]:
    k, experts = popularity.top_k, popularity.experts
    if popularity.is_uniform:
        return (k / experts,) * experts
    # Sums over sets (elementary symmetric polynomials) of those before and those behind each one;
    # nothing is subtracted, so that nothing cancels.
    scale = max(popularity.weights)
    weights = [weight / scale for weight in popularity.weights]
    before, behind = _prefixes(weights, k), _prefixes(weights[::-1], k)[::-1]
    return tuple(
        weight * sum(before[e][j] * behind[e + 1][k - 1 - j] for j in range(k)) / before[-1][k]
        for e, weight in enumerate(weights)
    )


def _prefixes(weights: Sequence[float], k: int) -> list[list[float]]:
    """For the first 0, 1, 2, … of them: the sums over sets of 0..k of the sets' products."""
    sums = [[1.0] + [0.0] * k]
    for weight in weights:
        sums.append(_times(sums[-1], weight))
    return sums
