"""Which experts get replicas, and which nodes hold what, so that every node has as much to do.

DeepSeek's expert parallelism load balancer (the algorithm that github.com/deepseek-ai/EPLB
publishes, and its example):

- **Replicate.** Everyone has one replica; each further one goes to the expert that has most to do
  for each of its own.
- **Pack.** The replicas, the heaviest first, each to the node with the least to do that has room.
- **By host**, where experts come in groups that a token chooses among, and hosts of several nodes
  share them evenly: groups are packed to hosts, and the rest happens within each, so that a token's
  experts are near each other.

>>> loads = [
...     [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
...     [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
... ]
>>> for layer in loads:
...     print(balanced(layer, replicas=16, nodes=8, groups=4, hosts=2))
[[5, 6], [5, 7], [8, 4], [3, 4], [10, 9], [10, 2], [0, 1], [11, 1]]
[[7, 10], [6, 8], [6, 11], [8, 9], [2, 4], [5, 1], [5, 0], [3, 1]]
"""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from megainfer.errors import ConfigError


def balanced(
    loads: Sequence[float], replicas: int, nodes: int, groups: int = 1, hosts: int = 1
) -> list[list[int]]:
    """What each node holds, so many replicas each, in the order in which they were packed.

    loads: of each expert of a layer. replicas: in all, a multiple of `nodes`. groups: of as many
    experts each, in order; where they can't be shared among the hosts evenly, hosts are not looked
    at.

    Raises ConfigError, naming the values, where these don't divide each other.
    """
    if groups % hosts:
        groups = hosts = 1
    _check_divides("groups", groups, "experts", len(loads))
    _check_divides("hosts", hosts, "nodes", nodes)
    _check_divides("nodes", nodes, "replicas", replicas)
    if replicas < len(loads):
        raise ConfigError(f"{replicas} replicas are fewer than the {len(loads)} experts")
    size = len(loads) // groups
    of_groups = [range(first, first + size) for first in range(0, len(loads), size)]
    packed = pack([sum(loads[e] for e in group) for group in of_groups], hosts)
    held = list[list[int]]()
    for host in packed:
        experts = [expert for group in host for expert in of_groups[group]]
        held += _within(experts, loads, replicas // hosts, nodes // hosts)
    return held


def replicate(cost: Callable[[int, int], float], experts: int, replicas: int) -> list[int]:
    """Whose replica each one is: everyone's first, then those that were added.

    cost: of one replica, of an expert that has so many.
    """
    whose, counts = list(range(experts)), [1] * experts
    busiest = [(-cost(expert, 1), expert) for expert in range(experts)]
    heapify(busiest)
    for _ in range(replicas - experts):
        _, expert = busiest[0]
        whose.append(expert)
        counts[expert] += 1
        heapreplace(busiest, (-cost(expert, counts[expert]), expert))
    return whose


def pack(
    weights: Sequence[float], packs: int, whose: Sequence[int] | None = None
) -> list[list[int]]:
    """Items by their places in `weights`: as many to each pack, whose sums differ little.

    whose: items of the same one are kept apart where there is room; not looked at unless given.

    >>> pack([9, 7, 6, 5, 4, 1], 2)
    [[0, 3, 5], [1, 2, 4]]
    >>> pack([9, 2, 2, 1], 2), pack([9, 2, 2, 1], 2, whose=[0, 1, 1, 2])
    ([[0, 3], [1, 2]], [[0, 2], [1, 3]])
    """
    room = len(weights) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    packed: list[list[int]] = [[] for _ in range(packs)]
    has: list[set[int]] = [set() for _ in range(packs)]
    free = [(0.0, p) for p in range(packs)]  # (sum, pack), a heap
    for item in sorted(range(len(weights)), key=weights.__getitem__, reverse=True):
        passed = list[tuple[float, int]]()
        while whose is not None and free and whose[item] in has[free[0][1]]:
            passed.append(heappop(free))
        # Where all have one like it, it goes to the lightest nevertheless.
        total, lightest = heappop(free) if free else passed.pop(0)
        for other in passed:
            heappush(free, other)
        packed[lightest].append(item)
        if whose is not None:
            has[lightest].add(whose[item])
        if len(packed[lightest]) < room:
            heappush(free, (total + weights[item], lightest))
    return packed


def _within(
    experts: Sequence[int], loads: Sequence[float], replicas: int, nodes: int
) -> list[list[int]]:
    """Of one host's experts, what each of its nodes holds."""
    whose = replicate(lambda e, count: loads[experts[e]] / count, len(experts), replicas)
    shares = [loads[experts[e]] / whose.count(e) for e in whose]
    return [[experts[whose[replica]] for replica in own] for own in pack(shares, nodes)]


def _check_divides(what: str, part: int, whole: str, count: int) -> None:
    if part < 1 or count % part:
        raise ConfigError(f"{part} {what} can't share {count} {whole} evenly")
