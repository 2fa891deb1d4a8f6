"""The supervisor's children as a whole: forked, listened to, ended."""

import logging
import select
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic

import msgspec

from megainfer.errors import NodeDied
from megainfer.launch.plan import Plan
from megainfer.launch.station import NodeTask
from megainfer.messages.message import Role
from megainfer.messages.supervision import FromChild
from megainfer.messages.to_child import Stop
from megainfer.supervise.child import Child, ChildMain, Closable
from megainfer.supervise.forking.node import KILL_SECONDS, fork_node, fork_ranks
from megainfer.topology import CoreAssignment

logger = logging.getLogger("megainfer")


class Family:
    """All children that live, and those that have just died. own: what only the supervisor may keep
    open. servers: what only it and API servers may."""

    def __init__(self, plan: Plan, own: Sequence[Closable], servers: Sequence[Closable]) -> None:
        self._plan = plan
        self._own = tuple(own)
        self._of_servers = tuple(servers)
        self.children: list[Child] = []

    def start(self, role: Role, node: int, main: ChildMain, incarnation: int) -> Child:
        """Fork an API server, or who stands in for a node of another host."""
        cores = partial(self._cores, role, node)
        close = self._held(role)
        child = fork_ranks(role, node, [(main, ())], cores, close, incarnation)
        self.children.append(child)
        return child

    def start_node(self, task: NodeTask, incarnation: int) -> Child:
        """Fork a node of this host, all of its ranks; the first of them."""
        cores = partial(self._cores, task.role, task.node)
        close = self._held(task.role)
        first = fork_node(self._plan, task, cores, close, incarnation)
        self.children.append(first)
        return first

    def _held(self, role: Role) -> list[Closable]:
        """What a child of this role must not hold."""
        servers = () if role is Role.SERVER else self._of_servers
        return [*self.children, *self._own, *servers]

    def _cores(self, role: Role, node: int, rank: int) -> CoreAssignment | None:
        """None: where it likes, as an API server, or who stands in for a node elsewhere."""
        if role is Role.SERVER or self._plan.places is not None:
            return None
        return self._plan.cores_of(role, node, rank)

    def of(self, role: Role) -> list[Child]:
        return [child for child in self.children if child.role is role]

    @property
    def processes(self) -> list[Child]:
        """Of all children, all ranks."""
        return [rank for child in self.children for rank in child.ranks]

    @property
    def nodes(self) -> list[Child]:
        return [child for child in self.children if child.role is not Role.SERVER]

    def find(self, role: Role, node: int) -> Child | None:
        """The living process of a node."""
        return next((c for c in self.children if (c.role, c.node) == (role, node)), None)

    def poll(self, timeout: float, others: Collection[int]) -> set[int]:
        """The descriptors that are readable: of children's links and ends, and of `others`."""
        poller = select.poll()
        living = [one for one in self.processes if one.alive]
        watched = [fd for one in living for fd in (one.link.fileno(), one.pidfd)]
        for fd in (*watched, *others):
            poller.register(fd, select.POLLIN)
        return {fd for fd, _ in poller.poll(max(0.0, timeout) * 1000)}

    def heard(self, ready: Collection[int]) -> Iterator[tuple[Child, FromChild]]:
        """What children say whose links are ready."""
        for child in self.processes:
            if child.link.fileno() in ready:
                for message in drain(child):
                    yield child, message

    def buried(self, ready: Collection[int]) -> list[Child]:
        """Those that have ended, by their pidfds; they are none of the family any more, and their
        exit codes and last words are known."""
        dead = [child for child in self.children if child.collect(ready)]
        for child in dead:
            self.children.remove(child)
        return dead

    def end(self, role: Role, seconds: float) -> None:
        """Tell all of a role to stop; kill who doesn't within so many seconds."""
        children = self.of(role)
        for child in children:
            child.send(Stop())
        deadline = monotonic() + seconds
        for child in children:
            if not child.reap(max(0.0, deadline - monotonic())):
                logger.warning("%s did not end within %g s; killing it", child.name, seconds)
            child.kill()  # with the other ranks, which end with it
            for rank in child.ranks:
                rank.reap(KILL_SECONDS)

    def kill_all(self) -> None:
        """Called by a signal handler."""
        for child in self.children:
            child.kill()

    def close(self) -> None:
        for child in self.children:
            child.forget()


def drain(child: Child) -> Iterator[FromChild]:
    """Everything that the child has said; nothing more once it is gone, or what it has begun to say
    can't be read."""
    with suppress(NodeDied, msgspec.DecodeError):
        while (message := child.link.receive(timeout=0)) is not None:
            yield message
