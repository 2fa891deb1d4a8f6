"""All expert nodes of a layer: which of its experts each holds, and what the slowest has to do."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb, floor, log, sqrt

from megainfer.errors import ConfigError
from megainfer.planner.costs.held import Held, active_at_most
from megainfer.planner.costs.popularity import Popularity, counts_inside
from megainfer.planner.costs.straggling import normal_maximum
from megainfer.planner.eplb import pack, replicate

FEW = 16
"""Experts of a node up to which the distribution of its active ones is summed up; those of more are
nearly normal."""
STEP = 1.4
"""Where experts differ, active ones are computed for rows that are its powers; between two of them
they are off by less than 1 %."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """kinds: (what a node holds, nodes that hold such), those with the most choices first. fanout:
    nodes that a token is sent to, on average. most_sent: the probability that a token goes to the
    node that most go to. most_experts: that a node has room for.

    What the busiest node has to do is the mean of the largest of all nodes', which all wait for.
    Nodes count as independent and what they do as normal: of k nodes of which none has a smaller
    mean than the k-th, the largest is on average that much above it, and k is any.
    """

    kinds: tuple[tuple[Held, int], ...]
    fanout: float
    most_sent: float
    most_experts: int
    count: int = field(init=False)
    _choices: tuple[tuple[float, float, int], ...] = field(init=False, repr=False, compare=False)
    _active: dict[float, float] = field(default_factory=dict, repr=False, compare=False)
    _active_there: dict[float, float] = field(default_factory=dict, repr=False, compare=False)
    _powers: list[float] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        # (mean, what chance adds by the root of rows, the most that a token can choose)
        found, nodes = list[tuple[float, float, int]](), 0
        for held, count in self.kinds:
            nodes += count
            added = normal_maximum(nodes) * held.spread
            if not found or added > found[-1][1]:
                found.append((held.choices, added, min(held.top_k, held.experts)))
        object.__setattr__(self, "_choices", tuple(found))
        object.__setattr__(self, "count", nodes)

    @classmethod
    def of(cls, held: Sequence[Held], most_experts: int) -> "Nodes":
        kinds = sorted(Counter(held).items(), key=lambda kind: -kind[0].choices)
        sent = [node.sent for node in held]
        return cls(tuple(kinds), sum(sent), max(sent), most_experts)

    @property
    def busiest(self) -> Held:
        """The one with the most choices on average."""
        return self.kinds[0][0]

    def most_choices(self, rows: float) -> float:
        """Choices of `rows` tokens on the node that has the most of them: at most what all tokens
        can choose there, and one at least of each expert that is active."""
        root = sqrt(rows)
        most = max(min(rows * most, rows * mean + root * add) for mean, add, most in self._choices)
        return max(most, self.most_active(rows))

    def busiest_active(self, rows: float) -> float:
        """Different experts that `rows` tokens choose on the busiest node, on average."""
        if rows not in self._active_there:
            self._active_there[rows] = self.busiest.activated(rows)
        return self._active_there[rows]

    def most_active(self, rows: float) -> float:
        """Different experts that `rows` tokens choose on the node that has the most of them. Never
        less of more rows: straight between powers of STEP where experts differ."""
        if rows not in self._active:
            alike = all(len(held.likelihoods) == 1 for held, _ in self.kinds)
            self._active[rows] = self._most_active(rows) if alike else self._between_powers(rows)
        return self._active[rows]

    def _between_powers(self, rows: float) -> float:
        if rows <= 1:
            return self._at_power(0) * rows
        low = floor(log(rows) / log(STEP))
        start, end = STEP**low, STEP ** (low + 1)
        part = max(0.0, min(1.0, (rows - start) / (end - start)))
        return self._at_power(low) * (1 - part) + self._at_power(low + 1) * part

    def _at_power(self, power: int) -> float:
        """Of popular and other experts the normal distribution's deviation may shrink faster than
        its mean grows; the largest number of fewer rows holds then."""
        found = self._powers
        while len(found) <= power:
            if found and found[-1] >= self.most_experts * (1 - 1e-9):
                return found[-1]
            active = self._most_active(STEP ** len(found))
            found.append(max(active, found[-1]) if found else active)
        return found[power]

    def _most_active(self, rows: float) -> float:
        """However a token's choices fall, a node has its share of them, rounded up."""
        least = min(rows, 1.0) * -(-self.busiest.top_k // self.count)
        activities = [(list(held.activity(rows)), count) for held, count in self.kinds]
        found = _largest_of_few if self.most_experts <= FEW else _largest_of_many
        return max(least, found(activities))


Activity = list[tuple[float, int]]
"""(probability to be active, experts of which that is true)."""


def _largest_of_few(activities: Sequence[tuple[Activity, int]]) -> float:
    """The mean of the largest number of active experts of these nodes: of k or more with what is
    left of 1 when none has."""
    below = [(active_at_most(activity), nodes) for activity, nodes in activities]
    most, mean = max(len(own) for own, _ in below) - 1, 0.0
    for k in range(most):
        none = 1.0
        for own, nodes in below:
            if k < len(own):
                none *= own[k] ** nodes
        mean += 1 - none
    return mean


def _largest_of_many(activities: Sequence[tuple[Activity, int]]) -> float:
    ranked = sorted(
        (
            (
                sum(count * p for p, count in activity),
                sum(count * p * (1 - p) for p, count in activity),
                sum(count for _, count in activity),
                nodes,
            )
            for activity, nodes in activities
        ),
        reverse=True,
    )
    largest, so_far = 0.0, 0
    for mean, variance, experts, nodes in ranked:
        so_far += nodes
        largest = max(largest, min(experts, mean + normal_maximum(so_far) * sqrt(variance)))
    return largest


@lru_cache(maxsize=4096)
def nodes_of(popularity: Popularity, count: int, spares: int = 0) -> Nodes:
    """What each of `count` expert nodes holds, as evenly packed as they can be. spares: experts
    that each holds beyond its share, copies of the most popular ones, among which their tokens are
    divided evenly.

    Raises ConfigError for more nodes than experts, or more spares than others' experts.
    """
    experts = popularity.experts
    if not 1 <= count <= experts:
        raise ConfigError(f"{experts} experts can't be on {count} expert nodes, each with some")
    share = -(-experts // count)
    if not 0 <= spares <= experts - share:
        raise ConfigError(
            f"{spares} spare experts on each of {count} nodes: others have {experts - share}"
        )
    if popularity.is_uniform:
        return Nodes.of(_evenly(popularity, count), share + spares)
    held = placed(popularity, count, spares)
    counts = counts_inside(popularity, held)
    chosen, k = popularity.chosen(), popularity.top_k
    return Nodes.of(
        [
            Held.of([chosen[e] * part for e, part in own.items()], inside, k)
            for own, inside in zip(held, counts, strict=True)
        ],
        share + spares,
    )


def placed(popularity: Popularity, count: int, spares: int) -> list[dict[int, float]]:
    """Of each node: its experts, and which part of their tokens go to each."""
    experts, chosen = popularity.experts, popularity.chosen()
    slots, room = experts + count * spares, -(-experts // count) + spares
    # Two copies on one node would be of no use.
    whose = replicate(lambda e, n: chosen[e] / n if n < count else -1.0, experts, slots)
    copies = Counter(whose)
    # Places that nobody fills make as many for each node.
    weights = [*(chosen[e] / copies[e] for e in whose), *[0.0] * (room * count - slots)]
    packed = pack(weights, count, [*whose, *range(-len(weights), -slots)])
    held = list[dict[int, float]]()
    for own in packed:
        parts = Counter(whose[item] for item in own if item < slots)
        held.append({e: number / copies[e] for e, number in parts.items()})
    return held


def _evenly(popularity: Popularity, count: int) -> list[Held]:
    """Experts that are alike, in order; spares would spare nothing."""
    small, more = divmod(popularity.experts, count)
    sizes = [small + (node < more) for node in range(count)]
    starts = [sum(sizes[:node]) for node in range(count)]
    places = zip(starts, sizes, strict=True)
    return [_held_evenly(popularity, range(at, at + size)) for at, size in places]


def _held_evenly(popularity: Popularity, members: range) -> Held:
    experts, k, held = popularity.experts, popularity.top_k, len(members)
    likelihoods = ((k / experts, held),)
    spread = _spread_evenly(experts, k, held)
    return Held(likelihoods, _sent_evenly(popularity, members), k, spread)


def _sent_evenly(popularity: Popularity, members: range) -> float:
    experts, k, groups = popularity.experts, popularity.top_k, popularity.groups
    if groups is None:
        return 1 - comb(experts - len(members), k) / comb(experts, k)
    size = experts // groups.count
    in_group: Mapping[int, int] = Counter(expert // size for expert in members)
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
