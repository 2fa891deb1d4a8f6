"""Nodes on other hosts, as the supervisor starts them: which can be started, and by what."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from megainfer.hosts.reception import Reception
from megainfer.hosts.residences import Removals, Residences
from megainfer.hosts.stand_in import There, run_stand_in
from megainfer.launch.hosts.places import Node
from megainfer.launch.plan import Plan
from megainfer.launch.plan_codec import encode_plan
from megainfer.launch.station import NodeTask, Station
from megainfer.messages.hosts import Peer, RankThere, StartNode
from megainfer.messages.message import Role


class RemoteNodes:
    """All nodes of a plan that has places. residences: where they are."""

    def __init__(self, plan: Plan, reception: Reception, residences: Residences) -> None:
        self._plan, self._residences = plan, residences
        self._removals = Removals(plan, residences)
        self.reception = reception

    def can_start(self, role: Role, node: int) -> bool:
        """Whether its host is there, or all that its ranks are on."""
        return all(map(self.reception.is_there, self._hosts(role, node)))

    def check_host(self, role: Role, node: int) -> None:
        """Raises NodeDied where a host of it has been lost for longer than a start waits."""
        for name in self._hosts(role, node):
            self.reception.check_back(name)

    def move(self, missing: Sequence[Node], needed: Sequence[Node]) -> Iterator[tuple[Node, str]]:
        """Have those that are missing since their hosts stay away started on others; each, and its
        new host. needed: all nodes that there are to be."""
        reception = self.reception
        away = [node for node in missing if any(map(reception.stays_away, self._hosts(*node)))]
        if away:
            yield from self._removals.moved(away, needed, reception.hosts())

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

    def _hosts(self, role: Role, node: int) -> tuple[str, ...]:
        """Of each rank."""
        return self._residences.of_ranks(role, node, self._plan.ranks(role))

    def _peers(self, host: str) -> tuple[Peer, ...]:
        """From which this one may have weights."""
        return self.reception.peers(host) if self.reception.load_from_peer else ()
