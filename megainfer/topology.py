"""Which nodes take part, which expert lives where, and on which cores they run.

Pure data: no torch, no processes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from megainfer.errors import ConfigError

Owners = tuple[tuple[int, ...], ...]
"""Of one layer: for each global expert id, the expert nodes that hold it. The first is its home,
which its tokens are sent to; the others are replicas."""

Home = tuple[int, int]
"""An expert node, and the local id of an expert there."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which expert nodes hold which experts of each layer.

    num_nodes: expert nodes are numbered below it; one that left may hold nothing. tables: the
    different ways in which layers' experts are dealt, mostly one for all. layers: for each layer
    with experts, by its number in the model, which of the tables is its.

    Raises ConfigError, naming the values, where an expert has no owner or one that can't be.
    """

    num_nodes: int
    tables: tuple[Owners, ...]
    layers: dict[int, int]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("a placement needs a layer with experts")
        first = next(iter(self.layers))
        for layer, table in self.layers.items():
            if not 0 <= table < len(self.tables):
                raise ConfigError(f"layer {layer} has table {table}, there are {len(self.tables)}")
            experts, expected = len(self.tables[table]), len(self.owners(first))
            if experts != expected:
                raise ConfigError(f"layer {layer} has {experts} experts, layer {first} {expected}")
            self._check_owners(layer)

    @property
    def num_experts(self) -> int:
        """Of each layer."""
        return len(self.tables[0])

    def owners(self, layer: int) -> Owners:
        """Who holds each expert of a layer. Raises ConfigError for one without experts."""
        if layer not in self.layers:
            raise ConfigError(f"layer {layer} has no experts, those with some: {list(self.layers)}")
        return self.tables[self.layers[layer]]

    def experts_of(self, node: int, layer: int) -> tuple[int, ...]:
        """Global ids of a layer's experts on `node`, ascending; the index is the local id."""
        return tuple(e for e, nodes in enumerate(self.owners(layer)) if node in nodes)

    def held_by(self, node: int) -> dict[int, tuple[int, ...]]:
        """`experts_of` of every layer."""
        return {layer: self.experts_of(node, layer) for layer in self.layers}

    def most_of(self, node: int) -> int:
        """How many experts `node` holds of the layer that it holds most of."""
        return max(map(len, self.held_by(node).values()))

    def homes(self, layer: int) -> tuple[Home, ...]:
        """For each global expert id: where a layer's tokens for it are sent.

        Whoever is to share them out among replicas chooses here.

        >>> placement_of(2, {3: ((0,), (1, 0), (1,), (0, 1))}).homes(3)
        ((0, 0), (1, 0), (1, 1), (0, 2))
        """
        homes, held = [], [0] * self.num_nodes
        for nodes in self.owners(layer):
            homes.append((nodes[0], held[nodes[0]]))
            for node in nodes:
                held[node] += 1
        return tuple(homes)

    def orphans(self, node: int) -> dict[int, tuple[int, ...]]:
        """By layer, the experts that only `node` holds; layers without any are left out.

        >>> placement_of(2, {0: ((0,), (0, 1)), 1: ((1, 0), (1, 0))}).orphans(0)
        {0: (0,)}
        """
        alone = {
            layer: tuple(e for e, nodes in enumerate(self.owners(layer)) if nodes == (node,))
            for layer in self.layers
        }
        return {layer: experts for layer, experts in alone.items() if experts}

    def without(self, node: int) -> "Placement":
        """What is left when an expert node goes: its experts are at home at their next replica.

        >>> placement_of(2, {0: ((0, 1), (1,))}).without(0).owners(0)
        ((1,), (1,))

        Raises ConfigError naming the experts that nobody else holds.
        """
        if orphans := self.orphans(node):
            lost = "; ".join(f"layer {layer}: {list(es)}" for layer, es in orphans.items())
            raise ConfigError(f"only expert node {node} holds these experts: {lost}")
        tables = (
            tuple(tuple(n for n in nodes if n != node) for nodes in table) for table in self.tables
        )
        return replace(self, tables=tuple(tables))

    def _check_owners(self, layer: int) -> None:
        known = set(range(self.num_nodes))
        for expert, nodes in enumerate(self.owners(layer)):
            if not nodes:
                raise ConfigError(f"expert {expert} of layer {layer} has no owner")
            if len(set(nodes)) < len(nodes) or not known.issuperset(nodes):
                raise ConfigError(
                    f"expert {expert} of layer {layer} is on nodes {list(nodes)}, which aren't "
                    f"different ones of {self.num_nodes}"
                )


def placement_of(num_nodes: int, owners: Mapping[int, Owners]) -> Placement:
    """From the owners of each layer; equal ones are kept once.

    >>> placement_of(2, {1: ((0,), (1,)), 2: ((1,), (0,)), 3: ((0,), (1,))}).layers
    {1: 0, 2: 1, 3: 0}
    """
    tables = tuple(dict.fromkeys(owners.values()))
    number = {table: index for index, table in enumerate(tables)}
    return Placement(num_nodes, tables, {layer: number[own] for layer, own in owners.items()})


def contiguous_placement(num_experts: int, num_nodes: int, layers: Iterable[int]) -> Placement:
    """Every expert of these layers once, in order, node sizes differing by at most one.

    >>> contiguous_placement(8, 3, layers=[1, 2]).tables
    (((0,), (0,), (0,), (1,), (1,), (1,), (2,), (2,)),)

    Raises ConfigError when there are more nodes than experts.
    """
    if not 1 <= num_nodes <= num_experts:
        raise ConfigError(
            f"{num_nodes} expert nodes were asked for, but the model has {num_experts} experts "
            f"a layer and a node without one would never work; use --ffn-gpus 1 to {num_experts}"
        )
    small, extra = divmod(num_experts, num_nodes)
    sizes = [small + (node < extra) for node in range(num_nodes)]
    owners = tuple((node,) for node, size in enumerate(sizes) for _ in range(size))
    return placement_of(num_nodes, dict.fromkeys(layers, owners))


@dataclass(frozen=True, slots=True)
class Membership:
    """Who takes part and where experts are, until the next one.

    epoch: counts memberships; M2N's messages carry it. attention, experts: the nodes that take
    part, ascending. placement: whose experts are all on such nodes, each of which has some.

    Raises ConfigError, naming the values, where it contradicts itself.
    """

    epoch: int
    attention: tuple[int, ...]
    experts: tuple[int, ...]
    placement: Placement

    def __post_init__(self) -> None:
        for role, nodes in (("attention", self.attention), ("expert", self.experts)):
            if not nodes or list(nodes) != sorted(set(nodes)) or nodes[0] < 0:
                raise ConfigError(f"{list(nodes)} are no {role} nodes in ascending order")
        members = set(self.experts)
        for layer in self.placement.layers:
            holders = {node for nodes in self.placement.owners(layer) for node in nodes}
            if holders != members:
                raise ConfigError(
                    f"experts of layer {layer} are on nodes {sorted(holders)}, members are "
                    f"{list(self.experts)}"
                )

    def without_attention(self, node: int) -> "Membership":
        """The next epoch's, when this attention node leaves."""
        left = tuple(n for n in self.attention if n != node)
        return replace(self, epoch=self.epoch + 1, attention=left)

    def without_expert(self, node: int) -> "Membership":
        """The next epoch's, when this expert node leaves. Raises ConfigError where replicas don't
        hold all that it did."""
        left = tuple(n for n in self.experts if n != node)
        placement = self.placement.without(node)
        return replace(self, epoch=self.epoch + 1, experts=left, placement=placement)


def first_membership(num_attention: int, placement: Placement) -> Membership:
    """Epoch 1: everybody takes part.

    >>> first_membership(2, contiguous_placement(8, 3, layers=[0])).experts
    (0, 1, 2)
    """
    experts = tuple(range(placement.num_nodes))
    return Membership(1, tuple(range(num_attention)), experts, placement)


@dataclass(frozen=True, slots=True)
class CoreAssignment:
    """CPU cores of one process; `threads` is how many compute threads it may start."""

    cores: tuple[int, ...]

    @property
    def threads(self) -> int:
        return len(self.cores)


def assign_cores(num_processes: int, cores: tuple[int, ...]) -> tuple[CoreAssignment, ...]:
    """Share the cores: disjoint and near equal where they suffice, else one each, in turn.

    >>> [a.cores for a in assign_cores(2, (0, 1, 2))]
    [(0, 1), (2,)]
    >>> [a.cores for a in assign_cores(3, (0, 1))]
    [(0,), (1,), (0,)]
    """
    if num_processes >= len(cores):
        return tuple(CoreAssignment((cores[i % len(cores)],)) for i in range(num_processes))
    small, extra = divmod(len(cores), num_processes)
    assignments, first = [], 0
    for process in range(num_processes):
        size = small + (process < extra)
        assignments.append(CoreAssignment(cores[first : first + size]))
        first += size
    return tuple(assignments)


def share_cores(num_processes: int, cores: tuple[int, ...]) -> tuple[CoreAssignment, ...]:
    """All cores to every process.

    >>> [a.cores for a in share_cores(2, (0, 1))]
    [(0, 1), (0, 1)]
    """
    return (CoreAssignment(cores),) * num_processes


def have_own_cores(assignments: tuple[CoreAssignment, ...]) -> bool:
    """Whether no two processes share a core.

    >>> have_own_cores(assign_cores(2, (0, 1, 2))), have_own_cores(assign_cores(3, (0, 1)))
    (True, False)
    """
    cores = [core for assignment in assignments for core in assignment.cores]
    return len(cores) == len(set(cores))
