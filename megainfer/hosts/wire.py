"""A connection between two hosts that never blocks: whole messages, and who is silent.

Whoever has one polls its descriptor, or looks often enough, and calls `pump`.
"""

import select
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any, Generic, TypeVar

import msgspec

from megainfer.errors import NodeDied, ProtocolError
from megainfer.hosts.other_clock import OtherClock
from megainfer.hosts.session import Session
from megainfer.messages.hosts import Pulse
from megainfer.messages.message import Message, encode
from megainfer.tls.end import MAYBE, WANTED, wants_tls
from megainfer.tls.peers import PeerTls

PULSE_SECONDS = 0.5
HANDSHAKE_SECONDS = 5.0
"""In which the other has to prove itself."""
MOST_WAITING_BYTES = 256 * 2**20
"""What may wait for one that reads slowly, before it counts as hung."""
CROWDED_BYTES = 32 * 2**20
"""Beyond so much that waits, nothing more should be taken from others that can wait."""
_PIECE_BYTES = 1 << 18

Incoming = TypeVar("Incoming")


class Wire(Generic[Incoming]):
    """One end of a connected TCP socket, which is this one's to close from now on.

    name: what to call the other in errors. calls: whether it is this side that has connected.
    lease: seconds of silence after which the other counts as lost. unanswered: seconds after which
    the kernel gives up bytes that no other kernel has acknowledged; the lease where it is shorter,
    or nothing is said. For who connects anew: it finds out sooner when the network is back. tls:
    where both are to show certificates, and all is to be hidden from others.
    """

    def __init__(
        self,
        connection: socket.socket,
        token: bytes,
        decoder: "msgspec.msgpack.Decoder[Incoming]",
        name: str,
        calls: bool,
        lease: float,
        unanswered: float = inf,
        tls: PeerTls | None = None,
    ) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._decoder = decoder
        self.name = name
        self._session = Session(token, calls)
        self._tls = None if tls is None else tls.end(calls)
        # With TLS it is the caller who speaks first, else the listener.
        self._in_vain = calls is (tls is None)  # whether the other was to begin, and hasn't
        self._waiting: deque[bytes] = deque()  # until both have proved themselves
        self._since = self._heard_at = monotonic()
        self._said_at = 0.0
        self._unanswered = unanswered
        self.other_clock = OtherClock()
        self.keep(lease)

    def keep(self, lease: float) -> None:
        """From now on for so many seconds of silence."""
        self.lease = lease
        timeout = int(min(lease, self._unanswered) * 1000)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)

    def fileno(self) -> int:
        return self._socket.fileno()

    def events(self) -> int:
        """What to poll its descriptor for."""
        return select.POLLIN | (select.POLLOUT if self._outgoing else 0)

    @property
    def is_open(self) -> bool:
        """Whether both have proved themselves."""
        return self._session.is_open

    @property
    def silence(self) -> float:
        """Seconds since anything was heard, as of the last `pump`."""
        return monotonic() - self._heard_at

    @property
    def pending(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._outgoing or self._waiting)

    @property
    def is_crowded(self) -> bool:
        """Whether more waits than should."""
        return len(self._outgoing) > CROWDED_BYTES

    def send(self, message: Message) -> None:
        """Never blocks. Raises NodeDied where the other is gone, or reads nothing."""
        self._waiting.append(encode(message))
        self._seal()
        self._flush()

    def pump(self) -> list[Incoming]:
        """Send what can be sent, and give what has come, pulses left out.

        Raises NodeDied when the other is gone, silent for too long, or has not proved itself in
        time; ProtocolError for what no peer of this version and token says.
        """
        try:
            return self._pump()
        except ProtocolError as error:
            with suppress(NodeDied):
                self._flush()  # why it is refused
            raise ProtocolError(f"{self.name}: {error}") from None

    def close(self) -> None:
        self._socket.close()

    def _pump(self) -> list[Incoming]:
        messages: list[Incoming] = []
        try:
            while (data := self._received()) is not None:
                self._heard_at, self._in_vain = monotonic(), False
                messages += map(self._decoded, self._session.feed(self._unsealed(data)))
            self._say()
        except NodeDied:
            if not messages:  # else its last words; the end is noticed again
                raise
        self._check_silence()
        return [message for message in messages if not self._is_pulse(message)]

    def _is_pulse(self, message: Incoming) -> bool:
        if not isinstance(message, Pulse):
            return False
        self.other_clock.hear(message)
        return True

    def _say(self) -> None:
        self._seal()
        if self._session.is_open and monotonic() - self._said_at > PULSE_SECONDS:
            self._said_at = monotonic()
            self._session.seal(encode(self.other_clock.pulse()))
        self._flush()

    def _seal(self) -> None:
        """What waits, once both have proved themselves, always in order."""
        while self._session.is_open and self._waiting:
            self._session.seal(self._waiting.popleft())

    @property
    def _hint(self) -> str:
        """What may be wrong where it ends."""
        return f"; {MAYBE}" if self._in_vain else ""

    @property
    def _outgoing(self) -> bytearray:
        """What is to be sent; whoever sends it takes it from there."""
        session = self._session.outgoing
        if self._tls is None:
            return session
        if session:
            self._tls.seal(session)
            session.clear()
        return self._tls.outgoing

    def _unsealed(self, data: bytes) -> bytes:
        """What a session is told. Raises ProtocolError where one side wants TLS, and the other has
        none."""
        if self._tls is not None:
            return self._tls.feed(data)
        if not self.is_open and wants_tls(data):
            raise ProtocolError(WANTED)
        return data

    def _received(self) -> bytes | None:
        """Something that has come; None where nothing has."""
        try:
            data = self._socket.recv(_PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise NodeDied(f"{self.name} can't be reached any more: {error.strerror}") from error
        if not data:
            raise NodeDied(f"{self.name} has closed the connection{self._hint}")
        return data

    def _decoded(self, body: bytes) -> Incoming:
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"it says what can't be read: {error}") from None

    def _flush(self) -> None:
        outgoing = self._outgoing
        try:
            while outgoing and (sent := self._socket.send(outgoing[:_PIECE_BYTES])):
                del outgoing[:sent]
        except BlockingIOError:
            if len(outgoing) > MOST_WAITING_BYTES:
                text = f"{self.name} left {len(outgoing)} bytes unread; it is hung or gone"
                raise NodeDied(text) from None
        except OSError as error:
            raise NodeDied(f"{self.name} can't be reached any more: {error.strerror}") from error

    def _check_silence(self) -> None:
        if not self.is_open and monotonic() - self._since > HANDSHAKE_SECONDS:
            raise NodeDied(
                f"{self.name} has not proved itself within {HANDSHAKE_SECONDS:g} s{self._hint}"
            )
        if self.silence > self.lease:
            raise NodeDied(f"{self.name} has been silent for {self.silence:.1f} s")


def await_messages(wire: "Wire[Incoming]", seconds: float) -> list[Incoming]:
    """The first that come. Raises as `Wire.pump`, and NodeDied where none comes in time."""
    deadline = monotonic() + seconds
    while (left := deadline - monotonic()) > 0:
        if messages := wire.pump():
            return messages
        poll([wire], left)
    raise NodeDied(f"{wire.name} said nothing within {seconds:g} s")


def poll(wires: "Sequence[Wire[Any]]", seconds: float, *others: int) -> set[int]:
    """Wait for news of these, at most until the next pulse is due; the descriptors that have some.
    others: descriptors to be read."""
    poller = select.poll()
    for wire in wires:
        poller.register(wire.fileno(), wire.events())
    for descriptor in others:
        poller.register(descriptor, select.POLLIN)
    bound = max(0.0, min(seconds, PULSE_SECONDS))
    return {descriptor for descriptor, _ in poller.poll(bound * 1000)}
