"""From one table of a layer to a better one, step by step, each from the node that has most to do.

A step is the best of what costs least to do: ways of an expert go over to another holder of it
(which moves no weights); a replica of it is made elsewhere, in an empty slot or in place of a
replica of another one, and gets ways; it changes places with an expert of another node. So weights
move only as far as it pays, and what is placed well stays where it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megainfer.planner.balancing.cost import Costs, node_costs
from megainfer.topology import EMPTY, Table

CLOSE = 0.02
"""How far above the mean a node may be that nothing more is done about."""
SHIFT_GAIN, MOVE_GAIN = 0.002, 0.01
"""What a step must save, of the mean, at least; moving weights takes a while itself."""
MOST_STEPS = 64
CANDIDATES = 8
"""Experts of the busiest node, and nodes with the least to do, that are thought of."""


@dataclass(frozen=True, slots=True)
class _Change:
    """expert: of the busiest node. to: the node. ways: how many go there. slot: of a new replica.
    heir: the node that gets the ways of what the slot held. swapped: a slot of `to` whose expert
    comes back."""

    peak: float  # the larger cost of those whom it touches, afterwards
    expert: int
    to: int
    ways: int
    slot: int | None = None
    heir: int | None = None
    swapped: int | None = None

    def moves_to(self, busiest: int) -> list[int]:
        """Nodes to which weights move."""
        if self.slot is None and self.swapped is None:
            return []
        return [self.to] if self.swapped is None else [self.to, busiest]


class Steps:
    """A layer on its way. nodes: those that may hold experts. room: how many experts may still come
    to each of them; it is used up."""

    def __init__(
        self, table: Table, costs: Costs, nodes: Sequence[int], room: dict[int, int]
    ) -> None:
        self._costs = costs
        self._nodes = nodes
        self._room = room
        self._held = [list(own) for own in table.experts]
        self._ways = [list(own) for own in table.ways]
        self._loads = node_costs(table, costs)
        self._least = 2 if all(len(homes) > 1 for homes in table.holders.values()) else 1
        self._slots: dict[int, dict[int, int]] = {}  # of each expert, by node
        for node, own in enumerate(self._held):
            for slot, expert in enumerate(own):
                if expert != EMPTY:
                    self._slots.setdefault(expert, {})[node] = slot

    @property
    def peak(self) -> float:
        """What the layer costs: what it costs the busiest node."""
        return max(self._loads[node] for node in self._nodes)

    @property
    def mean(self) -> float:
        return sum(self._loads[node] for node in self._nodes) / len(self._nodes)

    def run(self) -> Table:
        """As many steps as pay."""
        for _ in range(MOST_STEPS):
            if self.peak <= (1 + CLOSE) * self.mean:
                break
            change = self._best()
            if change is None:
                break
            self._do(change)
        return Table(tuple(map(tuple, self._held)), tuple(map(tuple, self._ways)))

    def _best(self) -> _Change | None:
        busiest = self._busiest()
        for candidates, gain in (
            (self._shifts(busiest), SHIFT_GAIN),
            (self._copies(busiest), MOVE_GAIN),
            (self._swaps(busiest), MOVE_GAIN),
        ):
            best = min(candidates, key=lambda change: change.peak, default=None)
            if best is not None and self._loads[busiest] - best.peak > gain * self.mean:
                return best
        return None

    def _busiest(self) -> int:
        return max(self._nodes, key=self._loads.__getitem__)

    def _heaviest(self, node: int) -> list[int]:
        """Its experts that cost it most."""
        costs = [
            (self._costs[e][ways], e)
            for e, ways in zip(self._held[node], self._ways[node], strict=True)
            if ways
        ]
        return [expert for _, expert in sorted(costs, reverse=True)[:CANDIDATES]]

    def _idlest(self) -> list[int]:
        return sorted(self._nodes, key=self._loads.__getitem__)[:CANDIDATES]

    def _shifts(self, busiest: int) -> Iterator[_Change]:
        for expert, slots in self._slots.items():
            if busiest in slots and self._ways_at(expert, busiest):
                for to in slots:
                    if to != busiest and to in self._nodes:
                        loads = self._loads[busiest], self._loads[to]
                        yield self._split(expert, busiest, to, loads)

    def _split(self, expert: int, busiest: int, to: int, loads: tuple[float, float]) -> _Change:
        """With so many ways gone over that the busier of the two has least to do. loads: of
        both."""
        costs, own = self._costs[expert], self._ways_at(expert, busiest)
        there = self._ways_at(expert, to) if to in self._slots[expert] else 0

        def peak(ways: int) -> float:
            left = loads[0] - costs[own] + costs[own - ways]
            return max(left, loads[1] - costs[there] + costs[there + ways])

        ways = min(range(1, own + 1), key=peak)
        return _Change(peak(ways), expert, to, ways)

    def _copies(self, busiest: int) -> Iterator[_Change]:
        for to in self._idlest():
            place = self._place(to) if to != busiest and self._room.get(to) else None
            if place is None:
                continue
            slot, load, heir, heir_load = place
            loads = (heir_load if heir == busiest else self._loads[busiest]), load
            others = 0.0 if heir in (None, busiest) else heir_load
            for expert in self._heaviest(busiest):
                if to not in self._slots[expert]:
                    split = self._split(expert, busiest, to, loads)
                    peak = max(split.peak, others)
                    yield _Change(peak, expert, to, split.ways, slot, heir)

    def _place(self, node: int) -> tuple[int, float, int | None, float] | None:
        """A slot for another expert: its number, what the node has to do without what it holds, who
        gets the ways of that, and what it then has to do. Empty, or of the replica that costs
        least."""
        best: tuple[float, int] | None = None
        for slot, expert in enumerate(self._held[node]):
            if expert == EMPTY:
                return slot, self._loads[node], None, 0.0
            if len(self._slots[expert]) > self._least:
                own = self._costs[expert][self._ways[node][slot]]
                best = min(best or (own, slot), (own, slot))
        if best is None:
            return None
        saved, slot = best
        expert, ways = self._held[node][slot], self._ways[node][slot]
        others = [n for n in self._slots[expert] if n != node]
        heir = min(others, key=self._loads.__getitem__)
        costs, there = self._costs[expert], self._ways[heir][self._slots[expert][heir]]
        heir_load = self._loads[heir] - costs[there] + costs[there + ways]
        return slot, self._loads[node] - saved, heir, heir_load

    def _swaps(self, busiest: int) -> Iterator[_Change]:
        """Of experts that have all their ways where they are."""
        for to in self._idlest():
            if to == busiest or not (self._room.get(to) and self._room.get(busiest)):
                continue
            for expert in self._heaviest(busiest):
                if to in self._slots[expert]:
                    continue
                cost = self._costs[expert][self._ways_at(expert, busiest)]
                for slot, other in enumerate(self._held[to]):
                    if other != EMPTY and busiest not in self._slots[other]:
                        back = self._costs[other][self._ways[to][slot]]
                        peak = max(
                            self._loads[busiest] - cost + back, self._loads[to] - back + cost
                        )
                        ways = self._ways_at(expert, busiest)
                        yield _Change(peak, expert, to, ways, swapped=slot)

    def _ways_at(self, expert: int, node: int) -> int:
        return self._ways[node][self._slots[expert][node]]

    def _do(self, change: _Change) -> None:
        busiest = self._busiest()
        for node in change.moves_to(busiest):
            self._room[node] -= 1
        if change.swapped is not None:
            self._swap(change.expert, busiest, change.to, change.swapped)
            return
        if change.slot is not None:
            self._clear(change.to, change.slot, change.heir)
            self._held[change.to][change.slot] = change.expert
            self._slots[change.expert][change.to] = change.slot
        self._give(change.expert, busiest, -change.ways)
        self._give(change.expert, change.to, change.ways)

    def _clear(self, node: int, slot: int, heir: int | None) -> None:
        expert, ways = self._held[node][slot], self._ways[node][slot]
        if expert == EMPTY:
            return
        assert heir is not None
        self._give(expert, node, -ways)
        self._give(expert, heir, ways)
        del self._slots[expert][node]
        self._held[node][slot] = EMPTY

    def _swap(self, expert: int, busiest: int, to: int, slot: int) -> None:
        own, other = self._slots[expert].pop(busiest), self._held[to][slot]
        del self._slots[other][to]
        for node, place, one, ways in (
            (busiest, own, other, self._ways[to][slot]),
            (to, slot, expert, self._ways[busiest][own]),
        ):
            before = self._costs[self._held[node][place]][self._ways[node][place]]
            self._loads[node] += self._costs[one][ways] - before
            self._slots[one][node] = place
        self._held[busiest][own], self._held[to][slot] = other, expert
        ways = self._ways[busiest][own]
        self._ways[busiest][own], self._ways[to][slot] = self._ways[to][slot], ways

    def _give(self, expert: int, node: int, ways: int) -> None:
        slot, costs = self._slots[expert][node], self._costs[expert]
        before = self._ways[node][slot]
        self._ways[node][slot] = before + ways
        self._loads[node] += costs[before + ways] - costs[before]
