"""Which nodes serve, as the front end knows it. No clock, no sockets.

A node is a row of processes, one after the other: its incarnations, numbered from 0. What an
incarnation says counts until it is lost; then its node lacks, until a membership has it again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megainfer.messages.message import Role
from megainfer.messages.requests import NodeReady
from megainfer.messages.to_child import NodeDown
from megainfer.topology import Membership

NodeName = tuple[Role, int]


@dataclass(slots=True)
class Lack:
    """A node that was lost and isn't back.

    message: how it was lost; not for everybody. since: when, in seconds of the front end's clock.
    died: so the supervisor says; else it was given up here. replaced: a later membership does
    without it.
    """

    role: Role
    node: int
    message: str
    since: float
    died: bool = True
    replaced: bool = False

    @property
    def state(self) -> str:
        """For anybody."""
        what = "died" if self.died else "can't be used"
        return f"{self.role} node {self.node} {what}"

    def __str__(self) -> str:
        return f"{self.state}: {self.message}"


class Attendance:
    """Members, the incarnations of attention nodes that are ready, and what lacks."""

    def __init__(self, num_nodes: int) -> None:
        self.members: Sequence[int] = range(num_nodes)
        self._experts: Sequence[int] | None = None  # before the first membership: all
        self.epoch = 1
        self.lacks: dict[NodeName, Lack] = {}
        self._ready: dict[int, NodeReady] = {}
        self._known: dict[int, NodeReady] = {}  # what members said last, lost ones included
        self._lost: dict[NodeName, int] = {}  # the newest incarnation that was lost

    def enter(self, membership: Membership) -> list[Lack]:
        """The lacks that this ends: of members, or because it does without these nodes. Both at
        once: a membership is only entered when it can serve."""
        self.epoch, self.members = membership.epoch, membership.attention
        self._experts = membership.experts
        ended = [lack for lack in self.lacks.values() if not lack.replaced]
        present = {Role.ATTENTION: membership.attention, Role.EXPERT: membership.experts}
        for name, lack in list(self.lacks.items()):
            lack.replaced = True
            if lack.node in present[lack.role]:
                del self.lacks[name]
        return ended

    def hear_ready(self, ready: NodeReady) -> bool:
        """Take in that an attention node can take requests; False: it is a lost or older one."""
        if self.is_gone(ready.node, ready.incarnation):
            return False
        self._ready[ready.node] = self._known[ready.node] = ready
        return True

    def lose(self, down: NodeDown, now: float, died: bool = True) -> Lack | None:
        """An incarnation is gone; None where that is known already."""
        name = (down.role, down.node)
        if self._is_lost(name, down.incarnation):
            return None
        self._lost[name] = down.incarnation
        ready = self._ready.get(down.node)
        if down.role is Role.ATTENTION and ready and ready.incarnation <= down.incarnation:
            del self._ready[down.node]
        before = self.lacks.get(name)
        since = now if before is None or before.replaced else before.since
        self.lacks[name] = lack = Lack(down.role, down.node, down.message, since, died)
        return lack

    def forget(self, role: Role, node: int) -> None:
        """It is none of the instance's nodes any more."""
        self.lacks.pop((role, node), None)
        if role is Role.ATTENTION:
            self._ready.pop(node, None)
            self._known.pop(node, None)

    def is_gone(self, node: int, incarnation: int) -> bool:
        """Whether an attention node isn't this incarnation any more."""
        current = self._ready.get(node)
        newest = -1 if current is None else current.incarnation
        return incarnation < newest or self._is_lost((Role.ATTENTION, node), incarnation)

    def is_member(self, role: Role, node: int) -> bool:
        members = self.members if role is Role.ATTENTION else self._experts
        return members is None or node in members

    def knows(self, node: int) -> bool:
        """Whether such an attention node is a member, or has said that it is ready."""
        return node in self.members or node in self._ready

    def restarts(self) -> Iterator[tuple[NodeName, int]]:
        """How often each node was started again, of those that were."""
        counts = {name: lost + 1 for name, lost in self._lost.items()}
        for node, ready in self._ready.items():
            name = (Role.ATTENTION, node)
            counts[name] = max(counts.get(name, 0), ready.incarnation)
        return ((name, count) for name, count in sorted(counts.items()) if count)

    def incarnation(self, node: int) -> int:
        """Of an attention node that is ready."""
        return self._ready[node].incarnation

    @property
    def takers(self) -> list[int]:
        """Attention nodes to which requests may be sent: members that are ready. One that came back
        takes none before it is a member again."""
        return [node for node in self.members if node in self._ready and not self._lacks(node)]

    @property
    def serves(self) -> bool:
        """Whether what is sent to a taker is computed; else it waits there."""
        return bool(self.takers) and not self.lacks_experts

    @property
    def lacks_experts(self) -> bool:
        """Whether there is nobody for some experts, so that nothing at any node goes on."""
        return any(n.role is Role.EXPERT and not n.replaced for n in self.lacks.values())

    @property
    def awaited(self) -> list[Lack]:
        """Why it doesn't serve; empty where it does, or where a member isn't ready yet."""
        takers = self.takers
        return [
            lack
            for lack in self.lacks.values()
            if (not takers if lack.role is Role.ATTENTION else not lack.replaced)
        ]

    @property
    def missing(self) -> list[int]:
        """Members that were never lost, but haven't said that they are ready."""
        return [n for n in self.members if n not in self._ready and not self._lacks(n)]

    @property
    def known(self) -> list[NodeReady]:
        """What attention nodes said of themselves: members, those included that come back."""
        return [self._known[node] for node in self.members if node in self._known]

    def _is_lost(self, name: NodeName, incarnation: int) -> bool:
        return incarnation <= self._lost.get(name, -1)

    def _lacks(self, node: int) -> bool:
        return (Role.ATTENTION, node) in self.lacks
