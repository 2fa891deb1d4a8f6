"""A peer that was met: its control connection, its two channels, and the thread that receives.

After the handshake the control connection carries frames, little-endian: kind (4), bytes of body
(4), how many payloads of the other's have arrived (8), body.

    1 BELL    a message's header (64) and, of an error, its text; a payload follows on the channel
              if the header has rows
    2 PULSE   empty: the sender lives, and so does the network between
    3 LATE    a BELL whose payload must not overtake another of its micro-batch that may still be on
              its way: it is received when that has been
"""

import contextlib
import logging
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from threading import Lock, Thread
from typing import NamedTuple

from megainfer.device import Device
from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.dist.buffers import LATE_TAG, Buffer, SentBuffers, tag_of
from megainfer.m2n.dist.groups import GROUP_SECONDS
from megainfer.m2n.dist.handshake import Pair
from megainfer.m2n.dist.inbox import Arrivals
from megainfer.m2n.dist.listening import watch_network
from megainfer.m2n.dist.slots import SentSlots
from megainfer.m2n.geometry import ERROR_ROOM_BYTES, Geometry
from megainfer.m2n.host.handshake import Side
from megainfer.m2n.message import HEADER_BYTES, Header, Kind, check_layout
from megainfer.m2n.slotted.mail import TO_ATTENTION, TO_EXPERT, Newcomer
from megainfer.tls.stream import send_now

log = logging.getLogger(__name__)

PULSE_SECONDS = 1
SILENCE_SECONDS = 10
"""After so long without a word a peer, or the network to it, is as good as gone."""
_FRAME = struct.Struct("<IIQ")
_MOST_BODY_BYTES = HEADER_BYTES + ERROR_ROOM_BYTES
_READ_BYTES = 4096
_SEQUENCE_LIMIT = 1 << 63  # a slot's word has one more bit


class ControlFrame(IntEnum):
    BELL = 1
    PULSE = 2
    LATE = 3


_KINDS = frozenset(ControlFrame)


@dataclass(frozen=True, slots=True)
class LinkNewcomer(Newcomer):
    """A peer that was met over a network. link: what leads to it."""

    link: "Link | None" = None


class LinkBuffers(NamedTuple):
    """A link's own memory: what is sent from, and a buffer a micro-batch that is received into."""

    sent: SentBuffers
    received: Sequence[Buffer]


class Link:
    """`wire.Peer` and `slots.Sending`. The node's thread sends, a thread of the link's receives.

    own: this node's role. Whatever ends it, a word too many or too few, ends it alone: its
    connection is shut, which is how its node and its peer hear of it.
    """

    def __init__(
        self,
        pair: Pair,
        own: Side,
        geometry: Geometry,
        device: Device,
        buffers: LinkBuffers,
        arrivals: Arrivals,
    ) -> None:
        self.index, self.incarnation = pair.index, pair.incarnation
        self.connection = pair.connection
        self.sent, self.received = buffers
        self.slots = SentSlots(geometry, self, device)
        self._pair: Pair | None = pair  # None once it has ended
        self._same_clock = pair.same_clock
        self._own, self._geometry = own, geometry
        self._arrivals = arrivals
        self._unexpected: Header | None = None  # what was sent, until its answer is expected
        self._unread = bytearray()
        self._taken = 0  # payloads of the peer's that have arrived
        self._lock = Lock()  # of what is written to the connection, and of its end
        self._holders = 2  # of the connection: the node and the thread
        self._closed = False
        self._thread = Thread(target=self._receive, name="m2n-link", daemon=True)

    def start(self) -> None:
        """Nobody else reads from the connection any more."""
        watch_network(self.connection, SILENCE_SECONDS)
        self._thread.start()

    def ring(self) -> None:
        """Sending has rung."""

    def newcomer(self) -> LinkNewcomer:
        """See `wire.Peer.newcomer`."""
        return LinkNewcomer(self.index, self.slots.region, link=self)

    # --- the node's thread --------------------------------------------------------------------

    def prepare(self, micro_batch: int) -> None:
        """See `slots.Sending.prepare`."""
        if not self.sent.renew(micro_batch):
            self._break("it has left too many payloads on their way", logging.WARNING)

    def send(self, header: Header, text: bytes) -> None:
        """See `slots.Sending.send`; harmless when the peer is gone.

        The payload goes first: where the peer has posted for it, it is there when the bell is, and
        the thread that hears the bell need not be woken twice.
        """
        pair = self._pair
        if pair is None:
            return
        late = header.rows > 0 and self.sent.is_pressed(header.micro_batch)
        if header.rows:
            payload = self.sent[header.micro_batch].sent_of(header.rows)
            tag = LATE_TAG if late else tag_of(header.micro_batch, header.rows)
            try:
                self.sent.sent(header.micro_batch, pair.out.send(payload, tag))
            except NodeDied as error:
                self._break(str(error), logging.WARNING)
                return
        kind = ControlFrame.LATE if late else ControlFrame.BELL
        if self._say(kind, header.pack() + text) and header.rows:
            self._unexpected = header
            if self._own is Side.EXPERT:
                self.expect_answer()

    def expect_answer(self) -> None:
        """Be ready for what the latest message is answered with, which has its size, a reply always
        and the next dispatch often. Its place is read no more. An attention node has this done when
        it has sent to all."""
        header, self._unexpected = self._unexpected, None
        pair = self._pair
        if header is None or pair is None:
            return
        payload = self.received[header.micro_batch].sent_of(header.rows)
        try:
            pair.back.expect(payload, tag_of(header.micro_batch, header.rows))
        except NodeDied as error:
            self._break(str(error), logging.WARNING)

    def close(self) -> None:
        """The node is done with it; never waits."""
        self._break("this node has closed it")
        self.sent.close()
        if not self._closed:
            self._closed = True
            self._release()

    # --- any thread ---------------------------------------------------------------------------

    def pulse(self) -> bool:
        """Show that this node lives; whether there is still somebody to show it to."""
        return self._say(ControlFrame.PULSE, b"")

    def join(self, seconds: float) -> None:
        """Wait for the thread of one that was closed."""
        self._thread.join(seconds)

    def _say(self, kind: ControlFrame, body: bytes) -> bool:
        """Write a frame, whole or not at all: one that reads so little that there is no room for it
        is as good as gone."""
        with self._lock:
            if self._pair is None:
                return False
            frame = _FRAME.pack(kind, len(body), self._taken) + body
            try:
                whole = send_now(self.connection, frame)
            except OSError:  # it is gone, as its thread will hear
                return False
        if not whole:
            self._break("it does not read what it is sent", logging.WARNING)
        return whole

    def _break(self, why: str, level: int = logging.DEBUG) -> None:
        """Nothing is sent any more, and its thread ends. The first reason is logged, before anybody
        hears of the end."""
        with self._lock:
            pair, self._pair = self._pair, None
        if pair is None:
            return
        log.log(level, "%s is cut off: %s", self._peer, why)
        _shut(self.connection)
        pair.out.abort()
        pair.back.abort()

    def _release(self) -> None:
        """The last who holds the connection closes it, so that its number means nobody else."""
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self.connection.close()

    @property
    def _peer(self) -> str:
        other = Side.EXPERT if self._own is Side.ATTENTION else Side.ATTENTION
        return other.node(self.index)

    # --- the thread that receives -------------------------------------------------------------

    def _receive(self) -> None:
        try:
            while self._hear():
                pass
            self._break("its connection has ended")
        except (NodeDied, ProtocolError, OSError) as error:
            self._break(str(error), logging.WARNING)
        finally:
            self._break("its thread has failed", logging.ERROR)  # else nobody would ever hear of it
            self._release()

    def _hear(self) -> bool:
        """The next frame, and what follows it; False where the connection has ended."""
        head = self._read(_FRAME.size)
        pair = self._pair
        if len(head) < _FRAME.size or pair is None:
            return False
        kind, length, arrived = _FRAME.unpack(head)
        if kind not in _KINDS or length > _MOST_BODY_BYTES:
            raise ProtocolError(f"M2N frame {kind} of {length} bytes on a control connection")
        body = self._read(length)
        if len(body) < length:
            return False
        self.sent.arrived(arrived)
        if kind != ControlFrame.PULSE:
            self._take(pair, body, kind == ControlFrame.LATE)
        return True

    def _take(self, pair: Pair, body: bytes, late: bool) -> None:
        """The message that a bell has announced."""
        header, text = Header.unpack(body[:HEADER_BYTES]), body[HEADER_BYTES:]
        self._check(header, text)
        if not header.rows:
            self._put(header, text)
            return
        payload = self.received[header.micro_batch].sent_of(header.rows)
        tag = LATE_TAG if late else tag_of(header.micro_batch, header.rows)
        pair.back.receive(payload, GROUP_SECONDS, tag)
        if self._pair is None:  # a device's receive that was aborted is as done as any other
            raise NodeDied("it was cut off while a payload was on its way")
        self._taken += 1
        self._put(header, text)

    def _put(self, header: Header, text: bytes) -> None:
        if not self._same_clock:
            header = header._replace(sent_at=0)  # of a clock that says nothing here
        self._arrivals.put(self, header, text)

    def _check(self, header: Header, text: bytes) -> None:
        """Raises ProtocolError before anything is posted for what can't be."""
        check_layout(header, self._geometry)
        kinds = TO_ATTENTION if self._own is Side.ATTENTION else TO_EXPERT
        if header.kind not in kinds:
            expected = " or ".join(sorted(kind.name for kind in kinds))
            raise ProtocolError(f"M2N message of kind {Kind(header.kind).name} where {expected}")
        if not 0 < header.sequence < _SEQUENCE_LIMIT:
            raise ProtocolError(f"M2N message with sequence {header.sequence}, they begin with 1")
        if header.source != self.index:
            raise ProtocolError(f"M2N message from node {header.source}, which is {self._peer}'s")
        length = header.length if header.kind == Kind.ERROR else 0
        if len(text) != length:
            raise ProtocolError(f"M2N bell with {len(text)} bytes of text, announced were {length}")

    def _read(self, size: int) -> bytes:
        """So many bytes; fewer where the connection has ended."""
        while len(self._unread) < size:
            try:
                more = self.connection.recv(_READ_BYTES)
            except TimeoutError:
                raise NodeDied(f"it has said nothing for {SILENCE_SECONDS:g} s") from None
            except ConnectionError:
                more = b""  # it was killed with something unread
            if not more:
                break
            self._unread += more
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end was faster
        connection.shutdown(socket.SHUT_RDWR)
