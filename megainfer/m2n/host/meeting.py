"""How nodes of one host come together, at the start and at any later time.

Expert nodes listen, attention nodes connect; the connection of each pair stays open, and its end
is how either notices the other's death. Whoever serves meanwhile does so in threads beside it.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from threading import Semaphore, Thread
from typing import Protocol

from megainfer.errors import ConfigError, MegaInferError, NodeDied, ProtocolError
from megainfer.m2n.host.connection import Admit, OwnEnd, Peer, admitted, greet, welcome
from megainfer.m2n.host.handshake import peer_uid
from megainfer.m2n.roads import Seat

log = logging.getLogger(__name__)

_BACKLOG = 128
_MOST_GUESTS = 64
_RETRY_SECONDS = 0.01
_PAUSE_SECONDS = 0.5
HANDSHAKE_SECONDS = 5.0
"""How long one that connects may take, which holds up nobody else."""


def expert_address(token: str, node: int, incarnation: int = 0) -> str:
    """The address of an expert node of the instance `token`, in the abstract namespace: it is no
    file, and is gone with its process."""
    return f"\0megainfer-{token}-expert-{node}-{incarnation}"


class Listener:
    """Where attention nodes find an expert node."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening

    @classmethod
    def create(cls, address: str) -> "Listener":
        """Raises ConfigError when the address is taken."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise ConfigError(f"cannot listen at {address!r}: {error}") from error
        return cls(listening)

    def accept(self, deadline: float | None) -> socket.socket:
        """The next connection of a process of our user; of others, it tells nobody anything.

        Raises TimeoutError at `deadline` (on the monotonic clock), OSError once `shut`.
        """
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 1e-3)
            self._socket.settimeout(left)
            connection, _ = self._socket.accept()
            if peer_uid(connection) == os.geteuid():
                return connection
            connection.close()

    def shut(self) -> None:
        """Whoever is in `accept` is told; nobody can connect any more."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class Door(Protocol):
    """A listening socket."""

    def accept(self, deadline: float | None) -> socket.socket:
        """See `Listener.accept`."""

    def shut(self) -> None:
        """See `Listener.shut`."""

    def close(self) -> None: ...


LetIn = Callable[[socket.socket, float], object]
Visit = Callable[[tuple[int, int], float], None]
"""Meets an expert node (index, incarnation) until a deadline; raises MegaInferError."""


class Doorman:
    """Lets others in until it is closed. name: of the node whose door it is, for the log. let_in:
    shakes hands with one that has connected, until a deadline, and takes its connection over.

    One that is slow, or never says a word, holds up nobody: each has a thread, and bounded time. Of
    so many at once that there are no more threads, the next waits until one of them is done.
    """

    def __init__(self, listener: Door, name: str, let_in: LetIn) -> None:
        self._listener = listener
        self._name = name
        self._take = let_in
        self._room = Semaphore(_MOST_GUESTS)
        self._shut = False
        self._thread = Thread(target=self._stand, name="m2n-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more."""
        if self._shut:
            return
        self._shut = True
        self._listener.shut()
        self._thread.join(HANDSHAKE_SECONDS)
        self._listener.close()

    def _stand(self) -> None:
        while True:
            try:
                connection = self._listener.accept(None)
            except OSError as error:
                if self._shut:
                    return
                log.warning("%s lets nobody in just now: %s", self._name, error)
                time.sleep(_PAUSE_SECONDS)  # for a descriptor, or memory, to be free again
                continue
            self._room.acquire()  # for a bounded time: nobody stays for longer than that
            Thread(target=self._let_in, args=(connection,), name="m2n-guest", daemon=True).start()

    def _let_in(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        try:
            self._take(connection, deadline)
        except MegaInferError as error:
            log.warning("%s let nobody in: %s", self._name, error)
        finally:
            self._room.release()


def let_in(
    connection: socket.socket, seat: Seat, own: OwnEnd, admit: Admit, deadline: float
) -> Peer:
    """Shake hands with whoever has connected, give it to `admit`, and tell it so. The connection is
    closed where that fails."""
    try:
        peer = welcome(connection, seat, own, deadline)
    except BaseException:
        connection.close()
        raise
    admit(peer)  # who closes it from now on
    admitted(peer, deadline)
    return peer


class Visitor:
    """Takes attention node `node` to expert nodes, each visit in a thread of its own."""

    def __init__(self, node: int, visit: Visit) -> None:
        self._node = node
        self._pay = visit
        self._latest: dict[int, int] = {}  # expert node -> the incarnation that is to be met

    def begin(
        self, expert: int, incarnation: int, timeout: float, on_met: Callable[[], None]
    ) -> None:
        """See `mailbox.JoiningPort.meet`."""
        self._latest[expert] = incarnation
        to = (expert, incarnation)
        deadline = time.monotonic() + timeout
        Thread(
            target=self._visit, args=(to, deadline, on_met), name="m2n-visit", daemon=True
        ).start()

    def _visit(self, expert: tuple[int, int], deadline: float, on_met: Callable[[], None]) -> None:
        try:
            self._pay(expert, deadline)
            on_met()
        except MegaInferError as error:
            # One that died meanwhile has a successor by then, whom another visit is paid.
            level = logging.WARNING if self._latest[expert[0]] == expert[1] else logging.DEBUG
            log.log(level, "attention node %d met nobody: %s", self._node, error)


def visit(address: str, seat: Seat, own: OwnEnd, expert: tuple[int, int], deadline: float) -> Peer:
    """Connect to an expert node (index, incarnation) and shake hands, trying again until somebody
    listens.

    Raises NodeDied when nobody does, or answers, in time, ProtocolError when it is of another
    version, geometry or user.
    """
    connection = dial(address, expert[0], deadline)
    try:
        return greet(connection, seat, own, expert, deadline)
    except BaseException:
        connection.close()
        raise


def dial(address: str, node: int, deadline: float) -> socket.socket:
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
