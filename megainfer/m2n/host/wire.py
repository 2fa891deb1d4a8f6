"""Bells and connections between processes, and who is alive."""

import math
import select
import socket
import time
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Protocol

from megainfer.m2n.host.region import Bell
from megainfer.m2n.slotted.mail import Newcomer
from megainfer.m2n.slotted.sleeper import Sleeper, Watched

GLANCE_SECONDS = 1e-3
"""How stale the knowledge of who is alive may be: asking takes a system call."""


class Peer(Protocol):
    """Another process that was met. Its connection ends when it does."""

    @property
    def index(self) -> int: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def connection(self) -> socket.socket: ...

    def ring(self) -> None:
        """See `port.Wire.ring`."""

    def newcomer(self) -> Newcomer:
        """What a mail has to know of it."""

    def close(self) -> None:
        """Nobody needs it any more."""


class HostWire:
    """`port.Wire` between processes. Other threads may call `met`, and nothing else."""

    def __init__(self, bell: Bell, sleeper: Sleeper) -> None:
        self._bell = bell
        self._sleeper = sleeper
        self._peers: dict[int, Peer] = {}
        self._met: SimpleQueue[Peer] = SimpleQueue()
        self._alive: dict[int, int] = {}  # connection -> peer
        self._lost: frozenset[int] = frozenset()
        self._glanced_at = -math.inf
        self._guests: Sequence[int] = ()  # the caller's fds of the last wait
        self._beside: Watched = ()  # another wire's
        self.watched = self._watch()

    def met(self, peer: Peer) -> None:
        """`newcomers` will tell of it."""
        self._met.put(peer)

    def newcomers(self) -> list[Newcomer]:
        """See `port.Wire.newcomers`; what was known of their predecessors is closed."""
        found: dict[int, Peer] = {}
        while (peer := self._next_met()) is not None:
            other = found.get(peer.index)
            if other is not None and other.incarnation > peer.incarnation:
                other, peer = peer, other
            found[peer.index] = peer
            if other is not None:
                other.close()
        for peer in found.values():
            self._forget(peer.index)
            self._peers[peer.index] = peer
            self._alive[peer.connection.fileno()] = peer.index
        if found:
            # Others keep what they were given: it is replaced, and never changed.
            self._lost = self._lost.difference(found)
            self.watched = self._watch()
        return [peer.newcomer() for peer in found.values()]

    def part(self, peer: int) -> None:
        """See `port.Wire.part`."""
        self._forget(peer)
        self.watched = self._watch()

    def incarnation(self, peer: int) -> int:
        """Of one that was met."""
        return self._peers[peer].incarnation

    def incarnations(self) -> dict[int, int]:
        """Of all that were met."""
        return {index: peer.incarnation for index, peer in self._peers.items()}

    def ring(self, peer: int) -> None:
        self._peers[peer].ring()

    def ring_self(self) -> None:
        self._bell.ring()

    def lost_peers(self) -> frozenset[int]:
        """As of at most GLANCE_SECONDS ago, or of the last wait."""
        now = time.monotonic()
        if now - self._glanced_at > GLANCE_SECONDS:
            self._glanced_at = now
            self._notice(_hung_up(self._alive))
        return self._lost

    def wait(self, timeout: float, fds: Sequence[int], beside: Watched = ()) -> None:
        """See `port.Wire.wait`. beside: what another wire of this node watches, which ends the wait
        and is that wire's to hear."""
        if fds != self._guests or beside is not self._beside:
            self._guests, self._beside = fds, beside
            self.watched = self._watch()
        ready = self._sleeper.sleep(timeout, self.watched)
        if ready:
            self._notice(ready)

    def close(self) -> None:
        self._alive.clear()  # the numbers of closed descriptors will be others' soon
        self.watched = ()
        self._bell.close()
        while (peer := self._next_met()) is not None:
            peer.close()
        for peer in self._peers.values():
            peer.close()

    def _next_met(self) -> Peer | None:
        try:
            return self._met.get_nowait()
        except Empty:
            return None

    def _forget(self, index: int) -> None:
        peer = self._peers.pop(index, None)
        if peer is not None:
            self._alive.pop(peer.connection.fileno(), None)
            peer.close()

    def _watch(self) -> Watched:
        return (
            (self._bell.fileno(), select.POLLIN),
            *((descriptor, select.POLLRDHUP) for descriptor in self._alive),
            *((descriptor, select.POLLIN) for descriptor in self._guests),
            *self._beside,
        )

    def _notice(self, ready: Sequence[int]) -> None:
        """Count the peers whose connection has ended as lost, and listen to them no more."""
        gone = [descriptor for descriptor in ready if descriptor in self._alive]
        if gone:
            self._lost = self._lost.union(self._alive.pop(descriptor) for descriptor in gone)
            self.watched = self._watch()


def _hung_up(connections: Iterable[int]) -> list[int]:
    """Those whose other end is closed."""
    poller = select.poll()
    for descriptor in connections:
        poller.register(descriptor, select.POLLRDHUP)
    return [descriptor for descriptor, _ in poller.poll(0)]
