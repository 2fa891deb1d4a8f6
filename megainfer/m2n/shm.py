"""M2N between processes of one host: slots in shared memory, bells as eventfds.

Expert nodes listen, attention nodes connect; the connection of each pair stays open, and its end
is how either notices the other's death.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from megainfer.errors import ConfigError, NodeDied, ProtocolError
from megainfer.m2n.attention_port import SlotAttentionPort
from megainfer.m2n.connection import Home, Peer, greet, welcome
from megainfer.m2n.expert_port import SlotExpertPort
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.handshake import peer_uid
from megainfer.m2n.port import Seat
from megainfer.m2n.region import Bell

_BACKLOG = 128
_RETRY_SECONDS = 0.01


def expert_address(token: str, node: int) -> str:
    """The address of an expert node of the instance `token`, in the abstract namespace: it is no
    file, and is gone with its process."""
    return f"\0megainfer-{token}-expert-{node}"


class ShmListener:
    """Where attention nodes find an expert node."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening

    @classmethod
    def create(cls, address: str) -> "ShmListener":
        """Raises ConfigError when the address is taken."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise ConfigError(f"cannot listen at {address!r}: {error}") from error
        return cls(listening)

    def accept(self, deadline: float) -> socket.socket:
        """The next connection of a process of our user; of others, it tells nobody anything.

        Raises TimeoutError at `deadline` (on the monotonic clock).
        """
        while True:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            connection, _ = self._socket.accept()
            if peer_uid(connection) == os.geteuid():
                return connection
            connection.close()

    def close(self) -> None:
        self._socket.close()


class ShmWire:
    """`port.Wire` between processes."""

    def __init__(self, bell: Bell, peers: Sequence[Peer], spin_seconds: float) -> None:
        self._bell = bell
        self._peers = peers
        self._spin_seconds = spin_seconds
        self._alive = {peer.connection.fileno(): index for index, peer in enumerate(peers)}
        self._lost: set[int] = set()
        self._guests: tuple[int, ...] = ()  # the caller's fds of the last wait
        self._poller = select.poll()
        self._poller.register(bell.fileno(), select.POLLIN)
        for descriptor in self._alive:
            self._poller.register(descriptor, select.POLLRDHUP)

    def ring(self, peer: int) -> None:
        self._peers[peer].bell.ring()

    def ring_self(self) -> None:
        self._bell.ring()

    def lost_peers(self) -> frozenset[int]:
        self._notice(self._poller.poll(0))
        return frozenset(self._lost)

    def wait(self, timeout: float, fds: Sequence[int], changed: Callable[[], bool]) -> None:
        if self._spin(min(timeout, self._spin_seconds), changed):
            return
        self._invite(tuple(fds))
        events = self._poller.poll(max(timeout, 0.0) * 1000)
        self._notice(events)
        if any(descriptor == self._bell.fileno() for descriptor, _ in events):
            self._bell.silence()  # before the caller looks, so that no later ring is lost

    def close(self) -> None:
        self._poller = select.poll()  # the numbers of closed descriptors will be others' soon
        self._alive.clear()
        self._bell.close()
        for peer in self._peers:
            peer.close()

    def _spin(self, seconds: float, changed: Callable[[], bool]) -> bool:
        """Whether a slot was touched within so short a time that sleeping would cost more."""
        if seconds <= 0:
            return False
        deadline = time.monotonic() + seconds
        while not changed():
            if time.monotonic() >= deadline:
                return False
        return True

    def _invite(self, guests: tuple[int, ...]) -> None:
        if guests == self._guests:
            return
        for descriptor in self._guests:
            self._poller.unregister(descriptor)
        for descriptor in guests:
            self._poller.register(descriptor, select.POLLIN)
        self._guests = guests

    def _notice(self, events: Sequence[tuple[int, int]]) -> None:
        """Count the peers whose connection has ended as lost, and listen to them no more."""
        for descriptor, _ in events:
            if (peer := self._alive.pop(descriptor, None)) is not None:
                self._lost.add(peer)
                self._poller.unregister(descriptor)


class ShmAttentionPort(SlotAttentionPort):
    """An attention node's port to expert nodes in other processes."""

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str],
        geometry: Geometry,
        index: int,
        epoch: int,
        timeout: float,
        spin_seconds: float = 0.0,
    ) -> "ShmAttentionPort":
        """Meet the expert nodes at `addresses`, in node order; they may begin to listen later.

        timeout: seconds for all of it. spin_seconds: how long `wait` looks at the slots before it
        sleeps; only useful where every node has a core. Raises NodeDied when a node does not
        answer in time, ProtocolError when it is of another version, geometry, epoch or user.
        """
        seat = Seat(geometry, index, epoch)
        if len(addresses) != geometry.num_expert:
            raise ProtocolError(f"{len(addresses)} addresses of {geometry.num_expert} expert nodes")
        deadline = time.monotonic() + timeout
        home = Home.create(geometry.attention_region_bytes)
        peers: list[Peer] = []
        with contextlib.ExitStack() as undo:
            undo.callback(home.close)
            for node, address in enumerate(addresses):
                connection = undo.enter_context(_dial(address, node, deadline))
                peers.append(greet(connection, seat, home, node, deadline))
                undo.callback(peers[node].close)
            undo.pop_all()
        home.file.close()
        wire = ShmWire(home.bell, peers, spin_seconds)
        return cls(seat, home.slots, [peer.slots for peer in peers], wire)


class ShmExpertPort(SlotExpertPort):
    """An expert node's port to attention nodes in other processes."""

    @classmethod
    def accept(
        cls,
        listener: ShmListener,
        geometry: Geometry,
        index: int,
        epoch: int,
        timeout: float,
        spin_seconds: float = 0.0,
    ) -> "ShmExpertPort":
        """Meet all attention nodes; arguments and errors as in `ShmAttentionPort.connect`."""
        seat = Seat(geometry, index, epoch)
        deadline = time.monotonic() + timeout
        home = Home.create(geometry.expert_region_bytes)
        peers: dict[int, Peer] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(home.close)
            while missing := sorted(set(range(geometry.num_attention)) - set(peers)):
                connection = undo.enter_context(_answer(listener, missing, deadline))
                node, peer = welcome(connection, seat, home, frozenset(peers), deadline)
                peers[node] = peer
                undo.callback(peer.close)
            undo.pop_all()
        home.file.close()
        in_order = [peers[node] for node in range(geometry.num_attention)]
        wire = ShmWire(home.bell, in_order, spin_seconds)
        return cls(seat, home.slots, [peer.slots for peer in in_order], wire)


def _answer(listener: ShmListener, missing: list[int], deadline: float) -> socket.socket:
    try:
        return listener.accept(deadline)
    except TimeoutError:
        raise NodeDied(f"attention nodes {missing} did not connect in time") from None


def _dial(address: str, node: int, deadline: float) -> socket.socket:
    """Connect, trying again until somebody listens."""
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            connection.connect(address)
        except (ConnectionRefusedError, BlockingIOError):  # nobody listens yet, or a full queue
            connection.close()
            if time.monotonic() + _RETRY_SECONDS > deadline:
                raise NodeDied(f"expert node {node} did not listen in time") from None
            time.sleep(_RETRY_SECONDS)  # nothing tells when somebody begins to listen
        else:
            break
    if (uid := peer_uid(connection)) != os.geteuid():  # anybody may take a name in this namespace
        connection.close()
        raise ProtocolError(f"expert node {node} runs as user {uid}, this is {os.geteuid()}")
    return connection
