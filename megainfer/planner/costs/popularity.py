"""Which experts tokens choose: how many are active, and who has how much to do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, pow, sqrt

from megainfer.errors import ConfigError
from megainfer.models.spec import ExpertGroups, RouterSpec
from megainfer.planner.costs.straggling import normal_maximum
from megainfer.planner.eplb import pack


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

    def nodes(self, count: int) -> "Nodes":
        """What each of `count` expert nodes holds, as evenly packed as they can be.

        Raises ConfigError for more nodes than experts.
        """
        return _nodes(self, count)


@dataclass(frozen=True, slots=True)
class Held:
    """The experts of one node.

    likelihoods: (probability that a token chooses it, experts of which that is true). sent: the
    probability that a token is sent here at all, once however many of its experts are here.
    top_k: of a token, in all. spread: the standard deviation of a token's experts here.
    """

    likelihoods: tuple[tuple[float, int], ...]
    sent: float
    top_k: int
    spread: float

    @property
    def experts(self) -> int:
        return sum(count for _, count in self.likelihoods)

    @property
    def choices(self) -> float:
        """Experts here that a token chooses, on average."""
        return sum(likelihood * count for likelihood, count in self.likelihoods)

    def activated(self, rows: float) -> float:
        """Different experts that `rows` tokens choose here, on average: whose weights are read."""
        return sum((1 - pow(1 - p, rows)) * count for p, count in self.likelihoods)

    def most_choices(self, rows: float, nodes: int) -> float:
        """Choices of `rows` tokens here, where this is the busiest of `nodes` nodes alike: chance
        puts the busiest above the mean, which all wait for. At most what all tokens can choose."""
        mean = rows * self.choices
        most = rows * min(self.top_k, self.experts)
        return min(most, mean + normal_maximum(nodes) * self.spread * sqrt(rows))


@dataclass(frozen=True, slots=True)
class Nodes:
    """All expert nodes. busiest: the one with the most choices. fanout: nodes that a token is sent
    to, on average. most_sent: the probability that a token goes to the node that most go to.
    most_experts: that a node holds."""

    count: int
    busiest: Held
    fanout: float
    most_sent: float
    most_experts: int

    @classmethod
    def of(cls, held: Sequence[Held]) -> "Nodes":
        sent = [node.sent for node in held]
        busiest = max(held, key=lambda node: node.choices)
        return cls(len(held), busiest, sum(sent), max(sent), max(node.experts for node in held))


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


@lru_cache(maxsize=1024)
def _nodes(popularity: Popularity, count: int) -> Nodes:
    experts = popularity.experts
    if not 1 <= count <= experts:
        raise ConfigError(f"{experts} experts can't be on {count} expert nodes, each with some")
    chosen = popularity.chosen()
    if popularity.is_uniform:
        small, more = divmod(experts, count)
        sizes = [small + (node < more) for node in range(count)]
        by_size = {size: _held(popularity, tuple(range(size))) for size in set(sizes)}
        return Nodes.of([by_size[size] for size in sizes])
    # Places that nobody fills make as many for each node.
    room = -(-experts // count)
    padded = [*chosen, *[0.0] * (room * count - experts)]
    packed = pack(padded, count) if room > 1 else [[e] for e in range(experts)]
    held = [tuple(e for e in own if e < experts) for own in packed]
    return Nodes.of([_held(popularity, own) for own in held])


def _held(popularity: Popularity, members: tuple[int, ...]) -> Held:
    chosen, k = popularity.chosen(), popularity.top_k
    likelihoods = Counter(chosen[e] for e in members)
    if popularity.is_uniform:
        sent = _sent_evenly(popularity, len(members))
        spread = _spread_evenly(popularity.experts, k, len(members))
    else:
        own = set(members)
        others = [w for e, w in enumerate(popularity.weights) if e not in own]
        inside = [popularity.weights[e] for e in members]
        counts = _counts(inside, others, k)
        sent = 1 - counts[0]
        mean = sum(number * p for number, p in enumerate(counts))
        spread = sqrt(max(0.0, sum(p * (n - mean) ** 2 for n, p in enumerate(counts))))
    return Held(tuple(likelihoods.items()), sent, k, spread)


def _counts(inside: Sequence[float], others: Sequence[float], k: int) -> list[float]:
    """The probability that 0..k of a token's experts are inside."""
    scale = max([*inside, *others])
    own = _prefixes([weight / scale for weight in inside], k)[-1]
    rest = _prefixes([weight / scale for weight in others], k)[-1]
    ways = [own[n] * rest[k - n] for n in range(k + 1)]
    return [way / sum(ways) for way in ways]


def _sent_evenly(popularity: Popularity, held: int) -> float:
    experts, k, groups = popularity.experts, popularity.top_k, popularity.groups
    if groups is None:
        return 1 - comb(experts - held, k) / comb(experts, k)
    size, open_ = experts // groups.count, experts // groups.count * groups.kept
    if held <= size:
        reached = groups.kept / groups.count
        return reached * (1 - comb(open_ - held, k) / comb(open_, k))
    whole = held // size  # further experts of a group that is only partly here aren't looked at
    return sum(
        comb(whole, kept)
        * comb(groups.count - whole, groups.kept - kept)
        / comb(groups.count, groups.kept)
        * (1 - comb(open_ - kept * size, k) / comb(open_, k))
        for kept in range(min(whole, groups.kept) + 1)
        if groups.kept - kept <= groups.count - whole
    )


def _spread_evenly(experts: int, k: int, held: int) -> float:
    """Of the hypergeometric distribution."""
    if experts == 1:
        return 0.0
    share = held / experts
    return sqrt(k * share * (1 - share) * (experts - k) / (experts - 1))
