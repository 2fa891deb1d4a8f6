"""Which experts tokens choose."""

from collections.abc import Sequence
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


def counts_inside(popularity: Popularity, members: Sequence[int]) -> list[float]:
    """The probability that 0, 1, … top_k of a token's experts are among these."""
    own, k, scale = set(members), popularity.top_k, max(popularity.weights)
    weights = [weight / scale for weight in popularity.weights]
    inside = _prefixes([weights[e] for e in members], k)[-1]
    others = _prefixes([weight for e, weight in enumerate(weights) if e not in own], k)[-1]
    ways = [inside[n] * others[k - n] for n in range(k + 1)]
    return [way / sum(ways) for way in ways]


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
        last = sums[-1]
        sums.append([1.0] + [last[j] + weight * last[j - 1] for j in range(1, k + 1)])
    return sums
