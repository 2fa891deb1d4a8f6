"""Which processes there are to be: forked when they are missing, ended when nobody needs them."""

from collections.abc import Callable
from time import monotonic

from megainfer.hosts.remote import RemoteNodes
from megainfer.launch.plan import Plan
from megainfer.launch.station import NodeTask, Station
from megainfer.messages.message import Role
from megainfer.messages.to_child import Stop
from megainfer.supervise.assembly import Assembly
from megainfer.supervise.child import Child
from megainfer.supervise.family import Family
from megainfer.supervise.roster import Node

ServerMain = Callable[[Station, int], None]
"""What the process of an API server runs: its station, its number."""


class Staffing:
    """server: what an API server's process runs, None without one; servers: how many. remote: who
    starts nodes on other hosts, None where all are on this one."""

    def __init__(
        self,
        plan: Plan,
        family: Family,
        assembly: Assembly,
        server: ServerMain | None,
        servers: int,
        remote: RemoteNodes | None = None,
    ) -> None:
        self._plan = plan
        self._family = family
        self._assembly = assembly
        self._server_main = server
        self._remote = remote
        count = 0 if server is None else servers
        self.servers: list[Node] = [(Role.SERVER, number) for number in range(count)]
        self._not_before: dict[Node, float] = {}  # on the monotonic clock
        self._dismissed: set[int] = set()  # process ids
        self._incarnations: dict[Node, int] = {}  # the next of each

    def start(self, node: Node) -> Child:
        """Its next incarnation."""
        self._not_before.pop(node, None)
        incarnation = self._incarnations.get(node, 0)
        self._incarnations[node] = incarnation + 1
        child = self._forked(node, incarnation)
        if child.role is not Role.SERVER:
            self._assembly.forked(node, incarnation)
        return child

    def postpone(self, node: Node, seconds: float) -> None:
        """It isn't to be forked again before so many seconds have passed."""
        self._not_before[node] = monotonic() + seconds

    def missing(self) -> list[Node]:
        """Those that are to be forked now."""
        now = monotonic()
        return [
            node
            for node in (*self.servers, *self._assembly.needed)
            if self._family.find(*node) is None
            and self._not_before.get(node, 0.0) <= now
            and self.can_start(node)
        ]

    def can_start(self, node: Node) -> bool:
        """Whether the host of a node is there."""
        if self._remote is None or node[0] is Role.SERVER:
            return True
        return self._remote.can_start(*node)

    def move(self) -> list[tuple[Node, str]]:
        """The nodes that have another host from now on, since theirs stays away, and that."""
        if self._remote is None:
            return []
        needed = self._assembly.needed
        missing = [node for node in needed if self._family.find(*node) is None]
        return list(self._remote.move(missing, needed))

    def check_hosts(self) -> None:
        """Raises NodeDied where one of a wanted node is lost for longer than a start waits."""
        if self._remote is not None:
            for role, node in self._assembly.wanted:
                self._remote.check_host(role, node)

    def dismiss_the_unneeded(self) -> None:
        """Have nodes end that nobody needs any more."""
        kept = {*self._assembly.needed, *self._assembly.members()}
        for child in self._family.nodes:
            if (child.role, child.node) not in kept:
                self.dismiss((child.role, child.node))

    def dismiss(self, node: Node) -> bool:
        """Have the process of a node end that is no member any more; whether there is one. To be
        called again until it has ended, since it may not have listened."""
        child = self._family.find(*node)
        if child is None:
            return False
        if child.pid not in self._dismissed and child.offer(Stop()):
            self._dismissed.add(child.pid)
        return True

    def ended(self, child: Child) -> bool:
        """A process has ended; whether anybody needs its node."""
        self._dismissed.discard(child.pid)
        return (child.role, child.node) in (*self.servers, *self._assembly.needed)

    def _forked(self, node: Node, incarnation: int) -> Child:
        role, index = node
        if role is Role.SERVER:
            assert self._server_main is not None
            server_main = self._server_main
            return self._family.start(
                role, index, lambda station: server_main(station, index), incarnation
            )
        task = NodeTask(
            role=role,
            node=index,
            measures=self._plan.measures and self._assembly.serve is None,
            placement=self._assembly.to_load(index) if role is Role.EXPERT else None,
            weights=self._assembly.weights,
            givers=None if self._remote is None else self._assembly.givers.for_start(node),
        )
        if self._remote is not None:
            return self._family.start(role, index, self._remote.main_of(task), incarnation)
        return self._family.start_node(task, incarnation)
