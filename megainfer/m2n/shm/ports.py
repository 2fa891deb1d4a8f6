"""M2N between processes of one host: slots in shared memory, bells as eventfds.

Expert nodes listen, attention nodes connect; the connection of each pair stays open, and its end
is how either notices the other's death.
"""

import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence

from megainfer.errors import ConfigError, NodeDied, ProtocolError
from megainfer.m2n.roads import DEFAULT_OPTIONS, PortOptions, Road, Seat
from megainfer.m2n.shm.connection import OwnEnd, Peer, greet, welcome
from megainfer.m2n.shm.handshake import peer_uid
from megainfer.m2n.shm.region import Bell
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.mail import Memory
from megainfer.m2n.slotted.opening import choose_mover
from megainfer.m2n.slotted.sleeper import Sleeper, Watched

_BACKLOG = 128
_RETRY_SECONDS = 0.01
GLANCE_SECONDS = 1e-3
"""How stale the knowledge of who is alive may be: asking takes a system call."""


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

    def __init__(self, bell: Bell, peers: Sequence[Peer], sleeper: Sleeper) -> None:
        self._bell = bell
        self._peers = peers
        self._sleeper = sleeper
        self._alive = {peer.connection.fileno(): index for index, peer in enumerate(peers)}
        self._lost: frozenset[int] = frozenset()
        self._glanced_at = -math.inf
        self._guests: Sequence[int] = ()  # the caller's fds of the last wait
        self._watched = self._watch()

    def ring(self, peer: int) -> None:
        self._peers[peer].bell.ring()

    def ring_self(self) -> None:
        self._bell.ring()

    def lost_peers(self) -> frozenset[int]:
        """As of at most GLANCE_SECONDS ago, or of the last wait."""
        now = time.monotonic()
        if now - self._glanced_at > GLANCE_SECONDS:
            self._glanced_at = now
            self._notice(_hung_up(self._alive))
        return self._lost

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        if fds != self._guests:
            self._guests = fds
            self._watched = self._watch()
        ready = self._sleeper.sleep(timeout, self._watched)
        if ready:
            self._notice(ready)

    def close(self) -> None:
        self._alive.clear()  # the numbers of closed descriptors will be others' soon
        self._watched = ()
        self._bell.close()
        for peer in self._peers:
            peer.close()

    def _watch(self) -> Watched:
        return (
            (self._bell.fileno(), select.POLLIN),
            *((descriptor, select.POLLRDHUP) for descriptor in self._alive),
            *((descriptor, select.POLLIN) for descriptor in self._guests),
        )

    def _notice(self, ready: Sequence[int]) -> None:
        """Count the peers whose connection has ended as lost, and listen to them no more."""
        gone = [descriptor for descriptor in ready if descriptor in self._alive]
        if gone:
            self._lost |= {self._alive.pop(descriptor) for descriptor in gone}
            self._watched = self._watch()


def _hung_up(connections: Iterable[int]) -> list[int]:
    """Those whose other end is closed."""
    poller = select.poll()
    for descriptor in connections:
        poller.register(descriptor, select.POLLRDHUP)
    return [descriptor for descriptor, _ in poller.poll(0)]


class ShmAttentionPort(SlotAttentionPort):
    """An attention node's port to expert nodes in other processes."""

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str],
        seat: Seat,
        timeout: float,
        options: PortOptions = DEFAULT_OPTIONS,
    ) -> "ShmAttentionPort":
        """Meet the expert nodes at `addresses`, in node order; they may begin to listen later.

        timeout: seconds for all of it. Raises NodeDied when a node does not answer in time,
        ProtocolError when it is of another version, geometry, epoch or user.
        """
        if len(addresses) != seat.geometry.num_expert:
            raise ProtocolError(
                f"{len(addresses)} addresses of {seat.geometry.num_expert} expert nodes"
            )
        deadline = time.monotonic() + timeout
        own = OwnEnd.create(seat.geometry.attention_region_bytes)
        peers: list[Peer] = []
        with contextlib.ExitStack() as undo:
            undo.callback(own.close)
            for node, address in enumerate(addresses):
                connection = undo.enter_context(_dial(address, node, deadline))
                peers.append(greet(connection, seat, own, node, deadline))
                undo.callback(peers[node].close)
            undo.pop_all()
        own.file.close()
        mail = choose_mover(options.mover).attention(seat, _memory(own, peers))
        sleeper = mail.sleeper(own.bell, options.spin_seconds)
        return cls(seat, mail, ShmWire(own.bell, peers, sleeper))


class ShmExpertPort(SlotExpertPort):
    """An expert node's port to attention nodes in other processes."""

    @classmethod
    def accept(
        cls,
        listener: ShmListener,
        seat: Seat,
        timeout: float,
        options: PortOptions = DEFAULT_OPTIONS,
    ) -> "ShmExpertPort":
        """Meet all attention nodes; arguments and errors as in `ShmAttentionPort.connect`."""
        deadline = time.monotonic() + timeout
        own = OwnEnd.create(seat.geometry.expert_region_bytes)
        peers: dict[int, Peer] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(own.close)
            while missing := sorted(set(range(seat.geometry.num_attention)) - set(peers)):
                connection = undo.enter_context(_answer(listener, missing, deadline))
                node, peer = welcome(connection, seat, own, frozenset(peers), deadline)
                peers[node] = peer
                undo.callback(peer.close)
            undo.pop_all()
        own.file.close()
        in_order = [peers[node] for node in range(seat.geometry.num_attention)]
        mail = choose_mover(options.mover).expert(seat, _memory(own, in_order))
        sleeper = mail.sleeper(own.bell, options.spin_seconds)
        return cls(seat, mail, ShmWire(own.bell, in_order, sleeper))


def open_attention_port(road: Road, seat: Seat, timeout: float) -> ShmAttentionPort:
    """See `roads.open_attention_port`."""
    nodes = range(seat.geometry.num_expert)
    addresses = [expert_address(road.token, node) for node in nodes]
    return ShmAttentionPort.connect(addresses, seat, timeout, road.options)


def open_expert_port(road: Road, seat: Seat, timeout: float) -> ShmExpertPort:
    """See `roads.open_expert_port`."""
    with contextlib.closing(ShmListener.create(expert_address(road.token, seat.index))) as listener:
        return ShmExpertPort.accept(listener, seat, timeout, road.options)


def _memory(own: OwnEnd, peers: Sequence[Peer]) -> Memory:
    return Memory(own.slots, [peer.slots for peer in peers], [peer.bell.fileno() for peer in peers])


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
