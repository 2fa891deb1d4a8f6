"""On which host each node of an instance is now, and on which GPU there: where the plan has it,
until it is moved."""

import logging
from collections.abc import Iterable, Iterator

from megainfer.config import format_bytes
from megainfer.launch.devices import ON_CPU, Devices, NodeGpus
from megainfer.launch.hosts.gpus import gpus_for
from megainfer.launch.hosts.places import Host, Node, Part, Places, part_on
from megainfer.launch.hosts.spread import need_of_parts, needs_of, whole
from megainfer.launch.plan import Plan
from megainfer.messages.message import Role

log = logging.getLogger(__name__)


class Residences:
    """Of a plan that has places. devices: of all nodes, as it is now."""

    def __init__(self, places: Places, devices: Devices = ON_CPU) -> None:
        self._places, self.devices = places, devices
        self._moved: dict[Node, str] = {}

    def of(self, role: Role, node: int) -> str:
        """The name of its host, of its first rank's where it has several."""
        if (gpu := self.devices.of(role, node)) is not None:
            return gpu.host
        return self._moved.get((role, node)) or self._places.of(role, node)

    def of_ranks(self, role: Role, node: int, ranks: int) -> tuple[str, ...]:
        """Of each of so many."""
        if (role, node) in self._moved or self.devices.of(role, node) is not None:
            return (self.of(role, node),) * ranks
        return self._places.of_ranks(role, node, ranks)

    def move(self, node: Node, to: Host | NodeGpus, hosts: Iterable[Host] = ()) -> None:
        """It is started on this host from now on, all of its ranks, or on these GPUs of one."""
        if isinstance(to, Host):
            self._moved[node] = to.name
            return
        offered = [gpu for host in hosts if host.name == to[0].host for gpu in host.offered]
        self.devices = self.devices.moved(*node, to, offered)


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
                self._residences.move(node, found, hosts)
                self._stuck.discard(node)
                yield node, self._residences.of(*node)
            elif node not in self._stuck:
                self._stuck.add(node)
                ranks = self._residences.of_ranks(*node, self._plan.ranks(node[0]))
                log.warning(
                    "no host that is there has the %s that %s node %d needs; it waits for %s",
                    *(self._needs(node), *node, "+".join(dict.fromkeys(ranks))),
                )

    def _needs(self, node: Node) -> str:
        needs = format_bytes(needs_of(self._plan, [node]))
        ranks = len(self._residences.devices.of_ranks(*node))
        if not ranks:
            return needs
        return f"{needs} and the {f'{ranks} GPUs' if ranks > 1 else 'GPU'} with room"

    def _room_for(
        self, node: Node, wanted: list[Node], hosts: list[Host]
    ) -> Host | NodeGpus | None:
        """That with the most cores for each node, of those that have memory for it; where it
        computes on GPUs, such as are free on one of those."""
        others = [other for other in wanted if other != node]
        there = {host.name: self._parts_on(host.name, others) for host in hosts}
        own = whole(self._plan, *node)
        fitting = [
            host
            for host in hosts
            if need_of_parts(self._plan, [*there[host.name], own]) <= host.machine.available_memory
        ]
        fitting.sort(
            key=lambda host: len(host.machine.cores) / (len(there[host.name]) + 1), reverse=True
        )
        if (devices := self._residences.devices).of(*node) is not None:
            return gpus_for(
                self._plan, devices, node, [gpu for host in fitting for gpu in host.offered]
            )
        return fitting[0] if fitting else None

    def _parts_on(self, host: str, nodes: list[Node]) -> list[Part]:
        parts = (
            part_on(host, node, self._residences.of_ranks(*node, self._plan.ranks(node[0])))
            for node in nodes
        )
        return [part for part in parts if part.ranks]
