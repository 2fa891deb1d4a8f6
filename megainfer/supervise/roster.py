"""Which node processes there are, whom they have met, and who can serve together.

Pure: no processes, no clock.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from megainfer.errors import ConfigError
from megainfer.messages.message import Role
from megainfer.topology import Membership, Placement


class Stage(IntEnum):
    """How far a node's process is."""

    LOADING = 0
    LOADED = 1
    OPEN = 2  # it can be met
    READY = 3  # it can be a member


Node = tuple[Role, int]
Pair = tuple[int, int]
"""An attention node, an expert node."""


@dataclass(slots=True)
class Entry:
    """The living process of a node."""

    incarnation: int
    stage: Stage = Stage.LOADING


class Roster:
    """Everybody who is alive. alone: one node has all roles, and nobody to meet."""

    def __init__(self, alone: bool = False) -> None:
        self._alone = alone
        self._entries: dict[Node, Entry] = {}
        self._asked: set[Pair] = set()
        self._met: set[Pair] = set()

    def forked(self, node: Node, incarnation: int) -> None:
        self._entries[node] = Entry(incarnation)

    def died(self, node: Node) -> None:
        del self._entries[node]
        side = 0 if node[0] is Role.ATTENTION else 1
        self._asked = {pair for pair in self._asked if pair[side] != node[1]}
        self._met = {pair for pair in self._met if pair[side] != node[1]}

    def reached(self, node: Node, stage: Stage) -> None:
        self._entries[node].stage = stage

    def is_alive(self, node: Node) -> bool:
        return node in self._entries

    def incarnation(self, node: Node) -> int:
        return self._entries[node].incarnation

    def all_reached(self, stage: Stage) -> bool:
        return all(entry.stage >= stage for entry in self._entries.values())

    def at(self, role: Role, stage: Stage) -> list[int]:
        """The nodes of a role that are at least so far, ascending."""
        found = (n for (r, n), entry in self._entries.items() if r is role and entry.stage >= stage)
        return sorted(found)

    def to_meet(self) -> list[Pair]:
        """Those who could meet and haven't been asked to; they count as asked from now on."""
        if self._alone:
            return []
        attention, experts = self.at(Role.ATTENTION, Stage.OPEN), self.at(Role.EXPERT, Stage.OPEN)
        pairs = {(a, e) for a in attention for e in experts} - self._asked
        self._asked |= pairs
        return sorted(pairs)

    def met(self, pair: Pair, expert_incarnation: int) -> None:
        """They have met, unless one has died since."""
        entry = self._entries.get((Role.EXPERT, pair[1]))
        if pair in self._asked and entry is not None and entry.incarnation == expert_incarnation:
            self._met.add(pair)

    def parted(self, pair: Pair) -> None:
        """Their connection has ended: they are to meet again."""
        self._asked.discard(pair)
        self._met.discard(pair)

    def not_met(self) -> list[Pair]:
        """Those who were asked to meet and haven't."""
        return sorted(self._asked - self._met)

    def all_met(self) -> bool:
        """Whether everybody who could meet has, as far as it was asked."""
        return not self.not_met()

    def together(
        self, members: Membership | None, candidates: Collection[Node]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(attention nodes, expert nodes) of the candidates that can serve together: of `members`
        whoever is left, and whoever is new and has met all of these."""
        attention = self._ready(Role.ATTENTION, candidates)
        if self._alone:
            return tuple(attention), (0,) if attention else ()
        experts = self._ready(Role.EXPERT, candidates)
        stay = [a for a in attention if members and a in members.attention]
        new = [e for e in experts if self._knows_all(stay, [e])]
        join = [a for a in attention if self._knows_all([a], new)]
        return tuple(join), tuple(new)

    def _ready(self, role: Role, candidates: Collection[Node]) -> list[int]:
        return [node for node in self.at(role, Stage.READY) if (role, node) in candidates]

    def _knows_all(self, attention: list[int], experts: list[int]) -> bool:
        return all((a, e) in self._met for a in attention for e in experts)


def placement_among(placement: Placement, experts: tuple[int, ...]) -> Placement | None:
    """What is left of a placement where only these expert nodes are; None where some expert would
    be nowhere."""
    try:
        for node in sorted(placement.holders - set(experts)):
            placement = placement.without(node)
    except ConfigError:
        return None
    return placement
