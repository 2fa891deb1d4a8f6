"""What the front ends are told: the API servers, or the owner of an instance without any."""

from collections.abc import Callable, Mapping

from megainfer.launch.control import ParentLink
from megainfer.messages.message import Message, Role
from megainfer.messages.pausing import PauseSet
from megainfer.messages.to_child import (
    Drain,
    Enter,
    FrontEndDown,
    FrontEndUp,
    NodeDown,
    NodeGone,
    Reload,
    Started,
)
from megainfer.planner.profiles import StageProfile
from megainfer.supervise.child import Child
from megainfer.supervise.chronicler import Chronicler
from megainfer.supervise.family import Family
from megainfer.supervise.roster import Node
from megainfer.topology import Membership

OWNER = {0: 0}
"""An owner is the first front end, and has one process."""


class FrontEnds:
    """Keeps what one that comes later has to be told. to_attention: says something to every
    attention node that serves."""

    def __init__(
        self, family: Family, owner: ParentLink | None, to_attention: Callable[[Message], None]
    ) -> None:
        self._family = family
        self._owner = owner
        self._to_attention = to_attention
        self._open = {} if owner is None else dict(OWNER)  # incarnations of those that listen
        self._down: dict[Node, NodeDown] = {}  # nodes that aren't back
        self._before: set[Node] = set()  # those of them that were known when it was entered
        self._membership: Membership | None = None
        self._reloaded: Reload | None = None
        self._paused: PauseSet | None = None
        self._started: Started | None = None
        self._drains = False
        self._chronicler = Chronicler()
        self.ready: set[int] = set()  # servers that answer

    # --- to all -------------------------------------------------------------------------------

    def enter(self, membership: Membership) -> None:
        self._membership = membership
        self._before = set(self._down)
        self._chronicler.entered(membership)
        self._announce(Enter(membership))

    def lost(self, child: Child, cause: str) -> None:
        """A node has died and will be started again."""
        down = NodeDown(child.role, child.node, cause, child.incarnation)
        self._down[child.role, child.node] = down
        self._before.discard((child.role, child.node))
        self._chronicler.lost((child.role, child.node), cause)
        self._announce(down)

    def back(self, node: Node) -> None:
        """A membership has it again; that has been told."""
        self._down.pop(node, None)

    def gone(self, node: Node) -> None:
        """A node that won't come back."""
        self._down.pop(node, None)
        self._chronicler.left(node)
        self._announce(NodeGone(*node))

    def returns(self, node: Node) -> None:
        """A process was started for it, in place of another or as its first."""
        self._chronicler.forked(node)

    def moved(self, node: Node, host: str) -> None:
        """It is started on another host."""
        self._chronicler.moved(node, host)

    def chronicle(self) -> None:
        """Tell API servers what happened, if anything did."""
        if self._chronicler.changed:
            self._to_servers(self._chronicler.told())
            self._chronicler.changed = False

    def reload(self, reload: Reload) -> None:
        self._reloaded = reload
        self._to_servers(reload)

    def pause(self, told: PauseSet) -> None:
        """Whether generation stands still."""
        self._paused = told
        self._announce(told)

    def drain(self) -> None:
        self._drains = True
        self._to_servers(Drain())

    def started(self, seconds: Mapping[str, float], profile: StageProfile | None) -> None:
        """All is there, after so many seconds of each stage. profile: None where none was made."""
        curves = {} if profile is None else profile.curves
        told = {term: list(curve.points) for term, curve in curves.items()}
        self._started = Started(seconds=dict(seconds), profile=told)
        self._to_servers(self._started)

    # --- one API server -----------------------------------------------------------------------

    def forked(self, server: Child) -> None:
        """It hears how things are."""
        if self._reloaded is not None:
            server.send(self._reloaded)
        if self._paused is not None:
            server.send(self._paused)
        if self._drains:
            server.send(Drain())
        if self._membership is not None:
            server.send(self._chronicler.told())
            # In the order of what happened: the membership ends what came before it.
            for node in self._before & self._down.keys():
                server.send(self._down[node])
            server.send(Enter(self._membership))
            for node in self._down.keys() - self._before:
                server.send(self._down[node])

    def opened(self, server: Child) -> None:
        """Attention nodes can connect to it."""
        self._open[server.node] = server.incarnation
        self._to_attention(FrontEndUp(server.node, server.incarnation))

    def answers(self, server: Child) -> None:
        """Clients can reach it."""
        self.ready.add(server.node)
        self._chronicler.back((server.role, server.node))
        if self._started is not None:
            server.send(self._started)

    def died(self, server: Child, cause: str) -> None:
        self._chronicler.lost((server.role, server.node), cause)
        self.ready.discard(server.node)
        self._open.pop(server.node, None)
        self._to_attention(FrontEndDown(server.node, server.incarnation))

    def introduce(self, attention: Child) -> None:
        """Name all to an attention node that is ready."""
        for server, incarnation in self._open.items():
            attention.send(FrontEndUp(server, incarnation))

    def _announce(self, message: Enter | NodeDown | NodeGone | PauseSet) -> None:
        self._to_servers(message)
        if self._owner is not None:
            self._owner.send(message)

    def _to_servers(self, message: Message) -> None:
        for server in self._family.of(Role.SERVER):
            server.send(message)
