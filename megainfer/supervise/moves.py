"""What nodes compute with, and what is on its way to them: experts elsewhere, or other weights.

Pure: it talks to nodes through what it is given.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from megainfer.messages.from_child import Prepared
from megainfer.messages.to_child import Prepare
from megainfer.messages.weights import WeightFiles
from megainfer.supervise.roster import Node
from megainfer.topology import Placement


@dataclass(frozen=True, slots=True)
class Holding:
    """Where experts are, and which weights all nodes have."""

    placement: Placement
    weights: WeightFiles


@dataclass(frozen=True, slots=True)
class Move:
    """concerned: who has to load something for it. renews: the weights are others. prepared: who
    has loaded all."""

    ticket: int
    target: Holding
    concerned: frozenset[Node]
    renews: bool
    prepared: set[Node] = field(default_factory=set)

    @property
    def prepare(self) -> Prepare:
        return Prepare(self.ticket, self.target.placement, self.target.weights)


class Moves:
    """One at a time, a newer one in place of an older. now: what counts while there is none. tell:
    says it to a node, unless that isn't ready to hear it."""

    def __init__(self, now: Holding, tell: Callable[[Node, Prepare], None]) -> None:
        self.now = now
        self.current: Move | None = None
        self._tell = tell
        self._tickets = 0

    def begin(self, target: Holding, concerned: Collection[Node]) -> None:
        """Have these nodes load what they have by the target."""
        self._tickets += 1
        renews = target.weights.version != self.now.weights.version
        self.current = Move(self._tickets, target, frozenset(concerned), renews)
        for node in sorted(concerned):
            self._tell(node, self.current.prepare)

    def give_up(self) -> None:
        """It doesn't come about; new weights, which take much memory, are forgotten at once."""
        if self.current is not None and self.current.renews:
            self.begin(self.now, self.current.concerned)
        self.current = None

    def ready(self, node: Node) -> None:
        """A node can hear what is on its way."""
        if self.current is not None and self.concerns(node):
            self._tell(node, self.current.prepare)

    def hear(self, node: Node, told: Prepared) -> str | None:
        """Why a node can't, if that is what it says; nothing of one that was given up."""
        if self.current is None or told.ticket != self.current.ticket:
            return None
        if told.error is None:
            self.current.prepared.add(node)
        return told.error

    def concerns(self, node: Node) -> bool:
        """Whether it has to load something for what is on its way."""
        return self.current is not None and node in self.current.concerned

    def died(self, node: Node) -> None:
        """What it had loaded is lost."""
        if self.current is not None:
            self.current.prepared.discard(node)

    def end(self) -> None:
        """The target is what is now, where all are ready for it."""
        if self.current is not None and self.current.concerned <= self.current.prepared:
            self.now, self.current = self.current.target, None
