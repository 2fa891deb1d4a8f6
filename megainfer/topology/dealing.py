"""Placements to begin with: from who is to hold what, and evenly."""

from collections.abc import Iterable, Mapping

from megainfer.errors import ConfigError
from megainfer.topology.placement import EMPTY, WAYS, Placement, Table, placed

Owners = tuple[tuple[int, ...], ...]
"""Of one layer: for each global expert id, the expert nodes that hold it. The first is its home,
which its tokens are sent to; the others are spares."""


def placement_of(num_nodes: int, owners: Mapping[int, Owners]) -> Placement:
    """From the owners of each layer: each node's experts in ascending order, then empty slots where
    it has fewer than of another layer.

    >>> placement_of(2, {1: ((0,), (1,)), 2: ((1,), (0,)), 3: ((0,), (1,))}).layers
    {1: 0, 2: 1, 3: 0}

    Raises ConfigError, naming the values, for owners that can't be.
    """
    experts = [len(own) for own in owners.values()]
    for layer, own in owners.items():
        if len(own) != experts[0]:
            first = next(iter(owners))
            raise ConfigError(f"layer {layer} has {len(own)} experts, layer {first} {experts[0]}")
        _check_nodes(layer, own, num_nodes)
    sizes = [_most(node, owners.values()) for node in range(num_nodes)]
    tables = {own: _table(own, sizes) for own in dict.fromkeys(owners.values())}
    return placed(experts[0] if experts else 0, {n: tables[own] for n, own in owners.items()})


def contiguous_placement(
    num_experts: int, num_nodes: int, layers: Iterable[int], replicas: int = 0
) -> Placement:
    """Every expert of these layers once, in order, node sizes differing by at most one; and on each
    node `replicas` experts more, spares of experts of other nodes: of as many experts as can be,
    and one node's among all others.

    >>> contiguous_placement(8, 3, layers=[1, 2]).owners(1)
    ((0,), (0,), (0,), (1,), (1,), (1,), (2,), (2,))
    >>> contiguous_placement(4, 2, layers=[0], replicas=1).tables[0].experts
    ((0, 1, 2), (2, 3, 0))

    Raises ConfigError when there are more nodes than experts, or more replicas than there are
    experts elsewhere.
    """
    if not 1 <= num_nodes <= num_experts:
        raise ConfigError(
            f"{num_nodes} expert nodes were asked for, but the model has {num_experts} experts "
            f"a layer and a node without one would never work; use --ffn-gpus 1 to {num_experts}"
        )
    small, extra = divmod(num_experts, num_nodes)
    if replicas > (most := num_experts - small - (extra > 0)):
        raise ConfigError(
            f"--expert-replicas {replicas} are more than the {most} experts of a layer that one "
            f"of {num_nodes} expert nodes doesn't have; use --expert-replicas 0 to {most}"
        )
    sizes = [small + (node < extra) for node in range(num_nodes)]
    held = [list(range(sum(sizes[:n]), sum(sizes[: n + 1]))) for n in range(num_nodes)]
    table = _with_spares(held, replicas)
    return placed(num_experts, dict.fromkeys(layers, table))


def _with_spares(held: list[list[int]], replicas: int) -> Table:
    """Slots of each node: what it holds, then its spares. Each round gives every expert one
    more."""
    spares: list[list[int]] = [[] for _ in held]
    for turn in range(len(held) - 1):
        for place in range(len(held[0])):
            for home, own in enumerate(held):
                if place < len(own):
                    _give(own[place], home, held, spares, replicas, turn + place)
    experts = tuple(
        (*own, *more, *(EMPTY,) * (replicas - len(more)))
        for own, more in zip(held, spares, strict=True)
    )
    ways = tuple((WAYS,) * len(own) + (0,) * replicas for own in held)
    return Table(experts, ways)


def _give(
    expert: int, home: int, held: list[list[int]], spares: list[list[int]], most: int, turn: int
) -> None:
    """One more spare of this expert, to whoever has the fewest; the next in turn of several."""
    nodes = len(held)
    free = [
        node
        for node in range(nodes)
        if node != home and len(spares[node]) < most and expert not in spares[node]
    ]
    if free:
        to = min(free, key=lambda node: (len(spares[node]), (node - home - 1 - turn) % nodes))
        spares[to].append(expert)


def _check_nodes(layer: int, owners: Owners, num_nodes: int) -> None:
    for expert, nodes in enumerate(owners):
        if not nodes:
            raise ConfigError(f"expert {expert} of layer {layer} has no owner")
        if len(set(nodes)) < len(nodes) or not set(range(num_nodes)).issuperset(nodes):
            raise ConfigError(
                f"expert {expert} of layer {layer} is on nodes {list(nodes)}, which aren't "
                f"different ones of {num_nodes}"
            )


def _most(node: int, layers: Iterable[Owners]) -> int:
    return max((sum(node in nodes for nodes in owners) for owners in layers), default=0)


def _table(owners: Owners, sizes: list[int]) -> Table:
    experts, ways = [], []
    for node, size in enumerate(sizes):
        own = [expert for expert, nodes in enumerate(owners) if node in nodes]
        empty = size - len(own)
        experts.append((*own, *(EMPTY,) * empty))
        ways.append((*(WAYS * (owners[e][0] == node) for e in own), *(0,) * empty))
    return Table(tuple(experts), tuple(ways))
