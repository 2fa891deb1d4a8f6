"""What happened to an instance's processes lately, in words, from what is announced anyway.

Pure: no processes; times are those of the caller's clock.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from megainfer.messages.message import Role
from megainfer.messages.to_child import Away, Chronicle, Event
from megainfer.supervise.roster import Node
from megainfer.topology import EMPTY, Membership, Placement

KEPT = 40
"""Events that are remembered: what a page shows, and a few hundred bytes in each message."""
SAID = re.compile(r"killed by \w+|exited with status \d+|hung\b|it is started anew")
"""How a cause begins that tells nothing of paths, prompts or the like."""


class Chronicler:
    """`changed`: whether there is more than was `told`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._away: dict[Node, Away] = {}
        self._restarts: dict[Node, int] = {}
        self._hosts: dict[Node, str] = {}
        self._before: Membership | None = None
        self.changed = False

    def told(self) -> Chronicle:
        """All of it. Whoever has told it to everybody sets `changed` back."""
        away = {_name(node): away for node, away in self._away.items()}
        restarts = {_name(node): count for node, count in self._restarts.items()}
        hosts = {_name(node): host for node, host in self._hosts.items()}
        return Chronicle(list(self._events), away, restarts, hosts)

    def lost(self, node: Node, cause: str) -> None:
        """A process has ended, and another is to take its place."""
        before = self._away.get(node)
        since = self._clock() if before is None else before.since
        self._away[node] = Away(since)
        self._restarts[node] = self._restarts.get(node, 0) + 1
        found = SAID.match(cause)
        how = found[0] if found else "died"
        if how == "it is started anew":
            self._say(f"{_name(node)} is started anew, as asked")
        elif how == "hung":
            self._say(f"{_name(node)} hung and was killed")
        else:
            again = "" if before is None else " again"
            self._say(f"{_name(node)} died{again}" + (f": {how}" if found else ""))

    def forked(self, node: Node) -> None:
        """A process for this node has been started."""
        if node in self._away:
            self._away[node] = msgspec.structs.replace(self._away[node], returning=True)
            self.changed = True

    def moved(self, node: Node, host: str) -> None:
        """It is started on this host, since its own, or its GPU there, stays away."""
        self._hosts[node] = host
        self._say(f"{_name(node)} is started on host {host}")

    def back(self, node: Node) -> None:
        """It does its work again, if it was lost."""
        away = self._away.pop(node, None)
        if away is not None:
            self._say(f"{_name(node)} is back after {self._clock() - away.since:.1f} s")

    def left(self, node: Node) -> None:
        """It is none of the instance's any more."""
        self._away.pop(node, None)
        self._restarts.pop(node, None)
        self._say(f"{_name(node)} has left")

    def entered(self, now: Membership) -> None:
        """This is what serves from now on."""
        before, self._before = self._before, now
        if before is None:
            self._say(f"{_sizes(now)} serve")
            return
        members, earlier = _members(now), _members(before)
        gone = [node for node in earlier if node not in members and node in self._away]
        for node in gone:
            seconds = self._clock() - self._away[node].since
            self._say(f"the others go on without {_name(node)}, {seconds:.1f} s after its loss")
        back = [node for node in members if node in self._away]
        joined = [node for node in members if node not in earlier and node not in back]
        for node in back:
            self.back(node)
        if joined:
            self._say(f"{_listed(joined)} joined: {_sizes(now)} serve")
        if not back and not gone:
            self._moved(before.placement, now.placement, balanced=members == earlier)

    def _moved(self, before: Placement, now: Placement, balanced: bool) -> None:
        """balanced: nobody came or went, so that it is only to have loads even."""
        what = "balanced: " if balanced else ""
        if count := len(_held(now) - _held(before)):
            self._say(f"{what}{_counted(count, 'expert')} moved, over all layers")
        elif balanced and before != now:
            self._say(f"{what}tokens are dealt anew among replicas")

    def _say(self, text: str) -> None:
        self._events.append(Event(round(self._clock(), 3), text))
        self.changed = True


def _name(node: Node) -> str:
    role, index = node
    return f"API server {index}" if role is Role.SERVER else f"{role} node {index}"


def _members(membership: Membership) -> list[Node]:
    return [
        *((Role.ATTENTION, node) for node in membership.attention),
        *((Role.EXPERT, node) for node in membership.experts),
    ]


def _sizes(membership: Membership) -> str:
    """
    >>> from megainfer.topology import contiguous_placement, first_membership
    >>> _sizes(first_membership(1, contiguous_placement(8, 2, layers=[0])))
    '1 attention and 2 expert nodes'
    """
    experts = _counted(len(membership.experts), "expert node")
    return f"{len(membership.attention)} attention and {experts}"


def _listed(nodes: Sequence[Node]) -> str:
    return " and ".join([", ".join(map(_name, nodes[:-1]))] * (len(nodes) > 1) + [_name(nodes[-1])])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _held(placement: Placement) -> set[tuple[int, int, int]]:
    """(layer, node, expert) of all that is held."""
    return {
        (layer, node, expert)
        for layer in placement.layers
        for node, slots in enumerate(placement.table(layer).experts)
        for expert in slots
        if expert != EMPTY
    }
