"""Which expert lives where, and where its tokens are sent.

An expert node has slots for experts, as many in each layer. A slot's number is the local id of what
it holds, so that an expert that stays keeps its id whatever moves around it.

An expert may be held by several nodes. Each token has one of 16 ways (`compute.ways`), and each way
of an expert leads to one of its holders: so many ways, such a part of its tokens. A holder without
any is a spare, which costs no reading of weights until others are gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from megainfer.errors import ConfigError

EMPTY = -1
"""What a slot holds that holds no expert."""
WAYS = 16
"""Tokens are told apart by so many ways; each expert's are dealt among those who hold it."""

Slots = tuple[tuple[int, ...], ...]
"""Of one layer: for each expert node, a number for each of its slots."""

Home = tuple[int, int]
"""An expert node, and the local id of an expert there."""


@dataclass(frozen=True)
class Table:
    """How a layer's experts are dealt. experts: what each slot holds, a global id or EMPTY. ways:
    how many of that expert's WAYS lead there."""

    experts: Slots
    ways: Slots

    @cached_property
    def holders(self) -> Mapping[int, tuple[Home, ...]]:
        """Of each expert, by its global id: the slots that hold it; those with the most ways first,
        and of these the lowest node."""
        found: dict[int, list[tuple[int, Home]]] = {}
        for node, slots in enumerate(self.experts):
            for slot, expert in enumerate(slots):
                if expert != EMPTY:
                    found.setdefault(expert, []).append((-self.ways[node][slot], (node, slot)))
        return {e: tuple(home for _, home in sorted(found[e])) for e in sorted(found)}

    @cached_property
    def homes(self) -> tuple[tuple[Home, ...], ...]:
        """For each expert, where each way leads; one home each where none is shared."""
        if all(self._has_all(homes[0]) for homes in self.holders.values()):
            return tuple(homes[:1] for homes in self.holders.values())
        return tuple(
            tuple(home for home in sorted(homes) for _ in range(self._ways(home)))
            for homes in self.holders.values()
        )

    def _ways(self, home: Home) -> int:
        node, slot = home
        return self.ways[node][slot]

    def _has_all(self, home: Home) -> bool:
        return self._ways(home) == WAYS

    def without(self, node: int) -> "Table":
        """With this node's slots empty, and their ways led to the others that hold the experts."""
        experts = _with(self.experts, node, (EMPTY,) * len(self.experts[node]))
        left = Table(experts, _with(self.ways, node, (0,) * len(self.ways[node])))
        return redealt(left)


@dataclass(frozen=True)
class Placement:
    """Which expert nodes hold which experts of each layer.

    num_experts: of each layer. tables: the different ways in which layers' experts are dealt,
    mostly one for all. layers: for each layer with experts, by its number in the model, which of
    the tables is its. Expert nodes are numbered from 0; one that left may hold nothing. A node has
    as many slots in each layer, since its layers share what they compute with.

    Raises ConfigError, naming the values, where an expert has no owner or one that can't be.
    """

    num_experts: int
    tables: tuple[Table, ...]
    layers: dict[int, int]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("a placement needs a layer with experts")
        checked = set[int]()
        for layer, number in self.layers.items():
            if not 0 <= number < len(self.tables):
                raise ConfigError(f"layer {layer} has table {number}, there are {len(self.tables)}")
            if number not in checked:
                self._check(layer, self.tables[number])
            checked.add(number)

    @property
    def num_nodes(self) -> int:
        """Expert nodes are numbered below it."""
        return len(self.tables[0].experts)

    @property
    def holders(self) -> frozenset[int]:
        """The expert nodes that hold anything."""
        homes = (homes for table in self.tables for homes in table.holders.values())
        return frozenset(node for own in homes for node, _ in own)

    def table(self, layer: int) -> Table:
        """How a layer's experts are dealt. Raises ConfigError for one without experts."""
        if layer not in self.layers:
            raise ConfigError(f"layer {layer} has no experts, those with some: {list(self.layers)}")
        return self.tables[self.layers[layer]]

    def num_slots(self, node: int) -> int:
        """Of this node, in each layer; none of a node that it doesn't know."""
        return len(self.tables[0].experts[node]) if node < self.num_nodes else 0

    def slots_of(self, node: int) -> dict[int, tuple[int, ...]]:
        """By layer, what each of the node's slots holds: a global id or EMPTY."""
        known = node < self.num_nodes
        return {n: self.table(n).experts[node] if known else () for n in self.layers}

    def experts_of(self, node: int, layer: int) -> tuple[int, ...]:
        """Global ids of a layer's experts on `node`, ascending."""
        own = self.table(layer).experts[node] if node < self.num_nodes else ()
        return tuple(sorted(expert for expert in own if expert != EMPTY))

    def held_by(self, node: int) -> dict[int, tuple[int, ...]]:
        """`experts_of` of every layer."""
        return {layer: self.experts_of(node, layer) for layer in self.layers}

    def owners(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """For each expert of a layer, the nodes that hold it, those that are sent most of its
        tokens first."""
        holders = self.table(layer).holders
        return tuple(tuple(node for node, _ in holders[e]) for e in range(self.num_experts))

    def homes(self, layer: int) -> tuple[tuple[Home, ...], ...]:
        """For each expert of a layer, where its tokens are sent: one home, or one for each way
        where any expert's tokens are shared out. As many for every expert.

        >>> from megainfer.topology import placement_of
        >>> placement_of(2, {3: ((0,), (1, 0), (1,), (0, 1))}).homes(3)
        (((0, 0),), ((1, 0),), ((1, 1),), ((0, 2),))
        """
        return self.table(layer).homes

    def orphans(self, node: int) -> dict[int, tuple[int, ...]]:
        """By layer, the experts that only `node` holds; layers without any are left out.

        >>> from megainfer.topology import placement_of
        >>> placement_of(2, {0: ((0,), (0, 1)), 1: ((1, 0), (1, 0))}).orphans(0)
        {0: (0,)}
        """
        alone = {
            layer: tuple(e for e, nodes in enumerate(self.owners(layer)) if nodes == (node,))
            for layer in self.layers
        }
        return {layer: experts for layer, experts in alone.items() if experts}

    @property
    def survives_any_node(self) -> bool:
        """Whether everything is still held when any one node goes."""
        holders = (homes for table in self.tables for homes in table.holders.values())
        return all(len(homes) > 1 for homes in holders)

    def without(self, node: int) -> "Placement":
        """What is left when an expert node goes: others that hold its experts get their tokens. No
        other local id changes.

        >>> from megainfer.topology import placement_of
        >>> placement_of(2, {0: ((0, 1), (1,))}).without(0).owners(0)
        ((1,), (1,))

        Raises ConfigError naming the experts that nobody else holds.
        """
        if orphans := self.orphans(node):
            lost = "; ".join(f"layer {layer}: {list(es)}" for layer, es in orphans.items())
            raise ConfigError(f"only expert node {node} holds these experts: {lost}")
        return replace(self, tables=tuple(table.without(node) for table in self.tables))

    def _check(self, layer: int, table: Table) -> None:
        sizes = [len(slots) for slots in table.experts]
        expected = [len(slots) for slots in self.tables[0].experts]
        if sizes != expected or sizes != [len(slots) for slots in table.ways]:
            raise ConfigError(
                f"nodes have {sizes} slots of layer {layer}, of the first {expected}; a node must "
                "have as many of each"
            )
        for expert in range(self.num_experts):
            self._check_expert(layer, expert, table)
        known = set(range(self.num_experts))
        if unknown := set(table.holders) - known:
            raise ConfigError(
                f"layer {layer} has the experts {sorted(unknown)}, there are {self.num_experts}"
            )

    def _check_expert(self, layer: int, expert: int, table: Table) -> None:
        homes = table.holders.get(expert, ())
        if not homes:
            raise ConfigError(f"expert {expert} of layer {layer} has no owner")
        nodes = [node for node, _ in homes]
        if len(set(nodes)) < len(nodes):
            raise ConfigError(
                f"expert {expert} of layer {layer} is on nodes {nodes}, which aren't different ones"
            )
        ways = [table.ways[node][slot] for node, slot in homes]
        if sum(ways) != WAYS or min(ways) < 0:
            raise ConfigError(
                f"the ways of expert {expert} of layer {layer} are {ways} on nodes {nodes}, they "
                f"must be {WAYS} in all"
            )


def placed(num_experts: int, tables: Mapping[int, Table]) -> Placement:
    """From the tables of each layer; equal ones are kept once."""
    distinct = tuple(dict.fromkeys(tables.values()))
    number = {table: index for index, table in enumerate(distinct)}
    return Placement(num_experts, distinct, {layer: number[own] for layer, own in tables.items()})


def redealt(table: Table) -> Table:
    """With all ways dealt again where some are lost: in the parts that are left, or all to a spare
    where none is.

    >>> redealt(Table(((0, 1), (1, 0), (0, EMPTY)), ((4, 0), (0, 4), (0, 0)))).ways
    ((8, 0), (16, 8), (0, 0))
    """
    ways = [list(own) for own in table.ways]
    for expert, homes in table.holders.items():
        left = [table.ways[node][slot] for node, slot in homes]
        for (node, slot), count in zip(homes, _all_of(left, expert), strict=True):
            ways[node][slot] = count
    return Table(table.experts, tuple(map(tuple, ways)))


def _all_of(left: list[int], expert: int) -> list[int]:
    """WAYS in the same parts; spares take over one each, not all from the same node."""
    total = sum(left)
    if not total:
        return [WAYS if i == expert % len(left) else 0 for i in range(len(left))]
    counts = [WAYS * own // total for own in left]
    for i in range(WAYS - sum(counts)):
        counts[i] += 1  # of those with the most, which come first
    return counts


def _with(slots: Slots, node: int, own: tuple[int, ...]) -> Slots:
    return (*slots[:node], own, *slots[node + 1 :])
