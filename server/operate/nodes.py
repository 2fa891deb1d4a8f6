"""What the nodes last said of themselves, and when."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from megainfer.launch.hosts.places import Places
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import Stats
from megainfer.messages.message import Role
from megainfer.messages.to_child import Chronicle
from megainfer.topology import Membership

Counters = Mapping[str, Any]


@dataclass(slots=True)
class NodeState:
    """counters: the latest told unasked; before: those of the time before. worked_at: when it last
    showed that it had handled a token. lost: it has died, and isn't back. member: it is of the
    membership that serves; has_served: it has been of any. back_at: when it last came back. Times
    are those of the board's clock; None: never."""

    role: Role
    index: int
    counters: Counters = field(default_factory=dict)
    before: Counters = field(default_factory=dict)
    heard_at: float | None = None
    worked_at: float | None = None
    lost: bool = False
    member: bool = True
    has_served: bool = False
    back_at: float | None = None

    @property
    def name(self) -> str:
        return f"{self.role} node {self.index}"

    @property
    def serves(self) -> bool:
        """Whether anything is expected of it."""
        return self.member and not self.lost

    def idle_share(self) -> float:
        """Of the time between the last two times that it was heard; 1 before that."""
        elapsed = self.growth("clock_seconds")
        return 1.0 - min(1.0, self.growth("busy_seconds") / elapsed) if elapsed > 0 else 1.0

    def growth(self, counter: str) -> float:
        return float(self.counters.get(counter, 0) - self.before.get(counter, 0))

    def hear(self, counters: Counters, now: float, unasked: bool) -> None:
        """Take in what it said at `now`. What it says unasked comes at even distances, so that
        shares of the time between are worth something."""
        if self.heard_at is not None and _tokens_handled(counters) > _tokens_handled(self.counters):
            self.worked_at = now
        if unasked:
            self.before, self.counters = self.counters or counters, counters
        self.heard_at = now

    def lose(self) -> None:
        """Its process has died, and took its counters with it."""
        self.lost, self.counters, self.before = True, {}, {}

    def enter(self, now: float) -> None:
        """It serves, since just now if it didn't before or is new."""
        self.has_served = True
        if not self.serves or self.heard_at is None:
            self.lost, self.member, self.back_at = False, True, now


class NodeBoard:
    """Every node's state. patience: seconds of silence after which a node counts as hung.

    membership: the present one, None before the first. chronicle: what happened to nodes. places:
    the hosts of nodes, None where all are on one.
    """

    def __init__(
        self,
        nodes: Iterable[NodeState] = (),
        patience: float = 20.0,
        clock: Callable[[], float] = monotonic,
        places: Places | None = None,
    ) -> None:
        self.places = places
        self._nodes = {node.name: node for node in nodes}
        self._patience = patience
        self._clock = clock
        self._watched_since = clock()
        self.changed = asyncio.Event()
        self.membership: Membership | None = None
        self.chronicle = Chronicle()

    def watch(self) -> None:
        """From now on silence counts: all nodes are serving."""
        self._watched_since = self._clock()

    def hear(self, stats: Stats) -> None:
        """Take in what a process said of its nodes."""
        now = self._clock()
        for name, counters in stats.counters.items():
            role, _, index = name.partition(" node ")
            self._state(Role(role), int(index)).hear(counters, now, stats.ticket is None)
        self.changed.set()

    def lose(self, role: Role, index: int) -> None:
        """A node has died: until it comes back its silence means nothing."""
        self._state(role, index).lose()
        self.changed.set()

    def forget(self, role: Role, index: int) -> None:
        """It is none of the instance's nodes any more."""
        self._nodes.pop(NodeState(role, index).name, None)
        self.changed.set()

    def enter(self, membership: Membership) -> None:
        """These serve from now on, and no others."""
        now, self.membership = self._clock(), membership
        members = {
            *(self._state(Role.ATTENTION, index).name for index in membership.attention),
            *(self._state(Role.EXPERT, index).name for index in membership.experts),
        }
        for name, node in self._nodes.items():
            if name in members:
                node.enter(now)
            else:
                node.member = False
        self.changed.set()

    def of_role(self, role: Role) -> list[NodeState]:
        """By number."""
        own = (node for node in self._nodes.values() if node.role is role)
        return sorted(own, key=lambda node: node.index)

    def host_of(self, node: NodeState) -> str | None:
        """The name of its host, or of those that its ranks are on; None where there is only one."""
        if self.places is None:
            return None
        return self.chronicle.hosts.get(node.name) or self.places.name_of(node.role, node.index)

    def num_serving(self) -> int:
        """Nodes of which something is expected."""
        return sum(node.serves for node in self._nodes.values())

    def silence(self, node: NodeState) -> float:
        """Seconds since it was last heard of."""
        return self._clock() - max(self._watched_since, node.heard_at or 0.0, node.back_at or 0.0)

    def back_seconds(self, node: NodeState) -> float | None:
        """Since it last came back or joined; None for one that always was there, or isn't."""
        if node.back_at is None or not node.serves or node.back_at <= self._watched_since:
            return None
        return self._clock() - node.back_at

    def is_up(self, node: NodeState) -> bool:
        return not node.lost and self.silence(node) <= self._patience

    def hung(self) -> str | None:
        """Which of the nodes that serve don't answer, in words; None when all do."""
        silent = [n for n in self._nodes.values() if n.serves and not self.is_up(n)]
        texts = [f"{n.name} has said nothing for {self.silence(n):.0f} s" for n in silent]
        return "; ".join(texts) or None

    def idle_experts(self, since: float) -> list[str]:
        """Names of the expert nodes that haven't shown to have handled a token since then, of those
        that serve."""
        experts = [node for node in self.of_role(Role.EXPERT) if node.serves]
        return [n.name for n in experts if n.worked_at is None or n.worked_at < since]

    def _state(self, role: Role, index: int) -> NodeState:
        fresh = NodeState(role, index, member=self.membership is None)
        return self._nodes.setdefault(fresh.name, fresh)


def board_of(plan: Plan, patience: float) -> NodeBoard:
    """An empty board for the nodes of a plan."""
    attention = [NodeState(Role.ATTENTION, node) for node in range(plan.num_attention)]
    experts = [NodeState(Role.EXPERT, node) for node in range(plan.num_expert)]
    return NodeBoard([*attention, *experts], patience, places=plan.places)


def _tokens_handled(counters: Counters) -> int:
    """Grows with each token that an attention node generates, and with each message that an expert
    node takes in or, where it shares a process with attention, each batch that it computes."""
    kinds = ("generated_tokens", "messages_received", "expert_count")
    return sum(counters.get(kind, 0) for kind in kinds if kind in counters)
