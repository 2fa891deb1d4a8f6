"""On which host each node of an instance is now: where the plan has it, until it is moved."""

import logging
from collections.abc import Iterable, Iterator

from megainfer.config import format_bytes
from megainfer.launch.hosts.places import Host, Places
from megainfer.launch.hosts.spread import needs_of
from megainfer.launch.plan import Plan
from megainfer.messages.message import Role

log = logging.getLogger(__name__)

Node = tuple[Role, int]


class Residences:
    """Of a plan that has places."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._moved: dict[Node, str] = {}

    def of(self, role: Role, node: int) -> str:
        """The name of its host."""
        return self._moved.get((role, node)) or self._places.of(role, node)

    def move(self, node: Node, host: str) -> None:
        """It is started there from now on."""
        self._moved[node] = host


class Removals:
    """To where nodes go whose hosts stay away. residences: of all nodes, which it changes."""

    def __init__(self, plan: Plan, residences: Residences) -> None:
        self._plan, self._residences = plan, residences
        self._stuck: set[Node] = set()  # that fit nowhere, as has been said

    def moved(
        self, away: Iterable[Node], wanted: Iterable[Node], hosts: Iterable[Host]
    ) -> Iterator[tuple[Node, str]]:
        """Each node that has another host now. away: those whose host is to be waited for no
        longer; wanted: all there are to be. hosts: that are there."""
        wanted, hosts = list(wanted), list(hosts)
        for node in away:
            found = self._room_for(node, wanted, hosts)
            if found is not None:
                self._residences.move(node, found.name)
                self._stuck.discard(node)
                yield node, found.name
            elif node not in self._stuck:
                self._stuck.add(node)
                needs = format_bytes(needs_of(self._plan, [node]))
                log.warning(
                    "no host that is there has the %s that %s node %d needs; it waits for %s",
                    *(needs, *node, self._residences.of(*node)),
                )

    def _room_for(self, node: Node, wanted: list[Node], hosts: list[Host]) -> Host | None:
        """That with the most cores for each node, of those that have memory for it."""
        others = [other for other in wanted if other != node]
        there = {
            host.name: [other for other in others if self._residences.of(*other) == host.name]
            for host in hosts
        }
        fitting = [
            host
            for host in hosts
            if needs_of(self._plan, [*there[host.name], node]) <= host.machine.available_memory
        ]
        return max(
            fitting,
            key=lambda host: len(host.machine.cores) / (len(there[host.name]) + 1),
            default=None,
        )
