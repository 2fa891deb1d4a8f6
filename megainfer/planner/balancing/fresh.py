"""A placement from loads alone, by EPLB: for nodes that are others than before."""

from collections.abc import Mapping, Sequence

from megainfer.errors import ConfigError
from megainfer.planner.balancing.cost import Costs
from megainfer.planner.balancing.steps import Steps
from megainfer.planner.eplb import pack, replicate
from megainfer.topology import EMPTY, WAYS, Placement, Table, placed


def fresh_placement(
    costs: Mapping[int, Costs], nodes: Sequence[int], replicas: int, before: Placement
) -> Placement:
    """Every expert of each layer, and on each node `replicas` beyond its share.

    costs: of each layer's experts. nodes: which hold them all, by their numbers. before: where
    experts are now: of equally good placements, one by which more of them stay.

    Raises ConfigError where there are more nodes than experts.
    """
    if len(nodes) > before.num_experts:
        raise ConfigError(
            f"{len(nodes)} expert nodes can't share {before.num_experts} experts a layer"
        )
    tables = {
        layer: _table(own, nodes, replicas, before.table(layer)) for layer, own in costs.items()
    }
    return placed(before.num_experts, tables)


def _table(costs: Costs, nodes: Sequence[int], replicas: int, before: Table) -> Table:
    room = -(-len(costs) // len(nodes)) + replicas
    most = min(room * len(nodes), len(nodes) * len(costs))
    whose = replicate(lambda e, n: _share(costs, e, n, len(nodes)), len(costs), most)
    shares = [costs[e][WAYS // whose.count(e)] for e in whose]
    shares += [0.0] * (room * len(nodes) - most)
    packed = pack(shares, len(nodes), [*whose, *range(-len(shares), -most)])
    held = [list(dict.fromkeys(whose[i] for i in own if i < most)) for own in packed]
    tables = _dealt(_where_most_stay(held, nodes, before), room)
    return Steps(tables, costs, nodes, room={}).run()


def _share(costs: Costs, expert: int, count: int, nodes: int) -> float:
    """What each of so many replicas costs; more than there are nodes are of no use."""
    return costs[expert][WAYS // count] if count < min(nodes, WAYS) else -1.0


def _where_most_stay(
    held: Sequence[Sequence[int]], nodes: Sequence[int], before: Table
) -> dict[int, Sequence[int]]:
    """Which of the nodes holds which of these: those first that share most with what it has."""
    had = {n: set(before.experts[n]) if n < len(before.experts) else set() for n in nodes}
    pairs = [(len(had[n] & set(own)), n, i) for n in nodes for i, own in enumerate(held)]
    chosen: dict[int, Sequence[int]] = {}
    taken = set[int]()
    for _, node, i in sorted(pairs, key=lambda pair: -pair[0]):
        if node not in chosen and i not in taken:
            chosen[node] = held[i]
            taken.add(i)
    return chosen


def _dealt(chosen: Mapping[int, Sequence[int]], room: int) -> Table:
    """Each expert's ways in equal parts; nodes that hold nothing have no slots."""
    holders: dict[int, list[int]] = {}
    for node in sorted(chosen):
        for expert in chosen[node]:
            holders.setdefault(expert, []).append(node)
    experts, ways = [], []
    for node in range(max(chosen) + 1):
        own = chosen.get(node, ())
        slots = room if node in chosen else 0
        experts.append((*own, *(EMPTY,) * (slots - len(own))))
        parts = [_part(holders[e].index(node), len(holders[e])) for e in own]
        ways.append((*parts, *(0,) * (slots - len(own))))
    return Table(tuple(experts), tuple(ways))


def _part(index: int, count: int) -> int:
    """Of WAYS.

    >>> [_part(i, 3) for i in range(3)]
    [6, 5, 5]
    """
    return WAYS // count + (index < WAYS % count)
