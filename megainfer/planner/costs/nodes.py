"""What expert nodes hold: how many of its experts are active, and who has how much to do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, expm1, log1p, sqrt

from megainfer.errors import ConfigError
from megainfer.planner.costs.popularity import Popularity, counts_inside
from megainfer.planner.costs.straggling import normal_maximum
from megainfer.planner.eplb import pack


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
        return sum(count * _at_least_once(p, rows) for p, count in self.likelihoods)

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


def _at_least_once(probability: float, rows: float) -> float:
    """1 - (1 - p) ** rows, to full precision also of few rows."""
    return 1.0 if probability >= 1 else -expm1(rows * log1p(-probability))


@lru_cache(maxsize=1024)
def nodes_of(popularity: Popularity, count: int) -> Nodes:
    """What each of `count` expert nodes holds, as evenly packed as they can be.

    Raises ConfigError for more nodes than experts.
    """
    experts = popularity.experts
    if not 1 <= count <= experts:
        raise ConfigError(f"{experts} experts can't be on {count} expert nodes, each with some")
    chosen = popularity.chosen()
    if popularity.is_uniform:
        small, more = divmod(experts, count)
        sizes = [small + (node < more) for node in range(count)]
        starts = [sum(sizes[:node]) for node in range(count)]
        places = zip(starts, sizes, strict=True)
        return Nodes.of([_held(popularity, tuple(range(at, at + size))) for at, size in places])
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
        sent = _sent_evenly(popularity, members)
        spread = _spread_evenly(popularity.experts, k, len(members))
    else:
        counts = counts_inside(popularity, members)
        sent = 1 - counts[0]
        mean = sum(number * p for number, p in enumerate(counts))
        spread = sqrt(max(0.0, sum(p * (n - mean) ** 2 for n, p in enumerate(counts))))
    return Held(tuple(likelihoods.items()), sent, k, spread)


def _sent_evenly(popularity: Popularity, members: tuple[int, ...]) -> float:
    experts, k, groups = popularity.experts, popularity.top_k, popularity.groups
    if groups is None:
        return 1 - comb(experts - len(members), k) / comb(experts, k)
    size = experts // groups.count
    in_group = Counter(expert // size for expert in members)
    return _sent_of_groups(tuple(sorted(in_group.values())), groups.count, groups.kept, size, k)


@lru_cache(maxsize=1024)
def _sent_of_groups(held: tuple[int, ...], count: int, kept: int, size: int, k: int) -> float:
    """held: how many experts of each group are here, of those with any."""
    ways = Counter({(0, 0): 1})  # (groups kept, experts here that they have): choices of groups
    for experts in held:
        ways += Counter({(n + 1, own + experts): way for (n, own), way in ways.items()})
    others = count - len(held)
    return sum(
        way
        * (comb(others, kept - n) / comb(count, kept))
        * (1 - comb(kept * size - own, k) / comb(kept * size, k))
        for (n, own), way in ways.items()
        if n <= kept
    )


def _spread_evenly(experts: int, k: int, held: int) -> float:
    """Of the hypergeometric distribution."""
    if experts == 1:
        return 0.0
    share = held / experts
    return sqrt(k * share * (1 - share) * (experts - k) / (experts - 1))
