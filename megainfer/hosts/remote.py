"""Nodes on other hosts, as the supervisor starts them: which can be started, and by what."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf
from time import monotonic

from megainfer.errors import NodeDied
from megainfer.hosts.reception import Reception
from megainfer.hosts.residences import Removals, Residences
from megainfer.hosts.stand_in import There, run_stand_in
from megainfer.launch.hosts.gpus import offered_anew
from megainfer.launch.hosts.places import Host, Node
from megainfer.launch.plan import Plan
from megainfer.launch.plan_codec import encode_plan
from megainfer.launch.station import NodeTask, Station
from megainfer.messages.hosts import Peer, RankThere, StartNode
from megainfer.messages.message import Role

log = logging.getLogger(__name__)


class RemoteNodes:
    """All nodes of a plan that has places. residences: where they are."""

    def __init__(self, plan: Plan, reception: Reception, residences: Residences) -> None:
        self._plan, self._residences = plan, residences
        self._removals = Removals(plan, residences)
        self.reception = reception
        self._hosts_known: dict[str, Host] = {}  # as they last joined
        self._without: dict[Node, float] = {}  # nodes of which a GPU isn't there, and since when

    def can_start(self, role: Role, node: int) -> bool:
        """Whether its host is there, or all that its ranks are on, and has the node's GPUs."""
        here = all(map(self.reception.is_there, self._hosts(role, node)))
        return here and self._has_gpus((role, node))

    def check_host(self, role: Role, node: int) -> None:
        """Raises NodeDied where a host of it, or a GPU of it there, has been lost for longer than a
        start waits."""
        for name in self._hosts(role, node):
            self.reception.check_back(name)
        if self._has_waited((role, node), self.reception.patience):
            raise NodeDied(
                f"host {self._residences.of(role, node)} came back without a GPU of {role} node "
                f"{node}; start its agent with that GPU, or begin again with the GPUs that it has"
            )

    def move(self, missing: Sequence[Node], needed: Sequence[Node]) -> Iterator[tuple[Node, str]]:
        """Have those that are missing since their hosts stay away started on others; each, and its
        new host. needed: all nodes that there are to be."""
        away = [node for node in missing if self._is_to_move(node)]
        if away:
            yield from self._removals.moved(away, needed, self.reception.hosts())

    def main_of(self, task: NodeTask) -> Callable[[Station], None]:
        """What the process of a node's stand-in runs; its host has to be there."""
        name = self._residences.of(task.role, task.node)
        reception = self.reception
        there = There(name, reception.listens_at(name), reception.token, reception.tls)
        lease = reception.lease
        peers = self._peers(name)
        plan = replace(self._plan, devices=self._residences.devices, m2n_key="")
        encoded = encode_plan(plan)  # M2N's key each host makes itself
        elsewhere = tuple(
            RankThere(rank, Peer(host, *reception.listens_at(host)), self._peers(host))
            for rank, host in enumerate(self._hosts(task.role, task.node))
            if host != name
        )

        def run(station: Station) -> None:
            start = StartNode(
                role=task.role,
                node=task.node,
                incarnation=station.incarnation,
                plan=encoded,
                measures=task.measures,
                placement=task.placement,
                weights=task.weights,
                lease=lease,
                peers=peers,
                elsewhere=elsewhere,
                givers=task.givers if reception.load_from_peer else None,
            )
            run_stand_in(station, self._plan, there, start)

        return run

    def _is_to_move(self, node: Node) -> bool:
        stays_away = any(map(self.reception.stays_away, self._hosts(*node)))
        waits = not self._has_gpus(node) and self._has_waited(node, self.reception.move_after)
        return stays_away or waits

    def _has_waited(self, node: Node, seconds: float) -> bool:
        """For longer than that, for its GPUs."""
        return node in self._without and monotonic() - self._without[node] > seconds

    def _look_at_gpus(self) -> None:
        """Hosts that have joined again may offer other GPUs than they did."""
        residences = self._residences
        for host in self.reception.hosts():
            if self._hosts_known.get(host.name) is not host:
                self._hosts_known[host.name] = host
                residences.devices = offered_anew(self._plan, residences.devices, host)

    def _has_gpus(self, node: Node) -> bool:
        """Whether its host, as it last joined, has the GPUs that it computes on, if any."""
        self._look_at_gpus()
        missing = [gpu for gpu in self._residences.devices.of_ranks(*node) if not gpu.there]
        if not missing:
            self._without.pop(node, None)
            return True
        if node not in self._without:
            self._without[node] = monotonic()
            several, numbers = len(missing) > 1, ",".join(str(gpu.number) for gpu in missing)
            log.warning(
                "host %s came back without %s %s with room for %s node %d, which waits until an "
                "agent there offers %s%s",
                *(missing[0].host, "GPUs" if several else "GPU", numbers, *node),
                "those GPUs" if several else "that GPU",
                "" if self.reception.move_after == inf else ", or is moved",
            )
        return False

    def _hosts(self, role: Role, node: int) -> tuple[str, ...]:
        """Of each rank."""
        return self._residences.of_ranks(role, node, self._plan.ranks(role))

    def _peers(self, host: str) -> tuple[Peer, ...]:
        """From which this one may have weights."""
        return self.reception.peers(host) if self.reception.load_from_peer else ()
