"""How two nodes find out that they are of one instance, version and geometry.

Fixed frames over a stream socket, each bounded by one deadline; the bytes are in docs/m2n.md:

    attention node                      expert node
    HELLO                        -->    checks it
    checks it                    <--    HELLO, MEMORY with its file descriptors
    MEMORY with its descriptors  -->    knows it
    connected                    <--    WELCOME

Between hosts a proof comes first, and other frames in place of MEMORY (`m2n/dist/handshake.py`).

Whoever finds a difference sends REFUSAL with the reason before it closes, so that both sides say
what is wrong. Magic, version, kind and length of a frame, and REFUSAL, are the same for ever.
"""

import contextlib
import io
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from typing import NoReturn

from megainfer.errors import NodeDied, ProtocolError
from megainfer.m2n.geometry import DTYPE_CODES, PAYLOAD_CODES, Geometry
from megainfer.m2n.message import VERSION
from megainfer.m2n.roads import Seat
from megainfer.tls.end import WANTED, wants_tls

_MAGIC = b"MEGAM2N\0"
_PREFIX = struct.Struct("<8sIII")  # magic, version, kind, bytes of body
_HELLO = struct.Struct("<IIQIIIIIIII16s")
_MAX_BODY_BYTES = 4096
_MAX_DESCRIPTORS = 3
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


NO_DEVICE = bytes(16)
_NAMES = {"dtype": DTYPE_CODES, "payloads": PAYLOAD_CODES}  # fields that are names, and their codes


class Frame(IntEnum):
    HELLO = 1
    MEMORY = 2
    REFUSAL = 3
    WELCOME = 4
    CHALLENGE = 5
    PROOF = 6
    GROUPS = 7
    STORE = 8
    RANK = 9  # between ranks of a node, which meet in the same frames (`ranks/dist/meeting.py`)
    EXPERTS = 10
    EXPERT = 11
    GIVEN = 12


class Side(IntEnum):
    ATTENTION = 1
    EXPERT = 2

    def node(self, index: int) -> str:
        return f"{self.name.lower()} node {index}"


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks and what it expects: role, index, incarnation, then the geometry's fields.

    device: the UUID of the device whose memory holds its payloads; zeros where none does.
    """

    side: int
    index: int
    incarnation: int
    geometry: tuple[int, ...]  # in the order of Geometry's fields, names as their codes
    device: bytes = NO_DEVICE

    @classmethod
    def of(cls, side: Side, seat: Seat, device: bytes = NO_DEVICE) -> "Hello":
        *sizes, _, _ = astuple(seat.geometry)
        codes = seat.geometry.dtype_code, seat.geometry.payload_code
        return cls(side, seat.index, seat.incarnation, (*sizes, *codes), device)

    def pack(self) -> bytes:
        return _HELLO.pack(self.side, self.index, self.incarnation, *self.geometry, self.device)

    @classmethod
    def unpack(cls, body: bytes) -> "Hello":
        side, index, incarnation, *geometry, device = _HELLO.unpack(body)
        return cls(side, index, incarnation, tuple(geometry), device)


HELLO_BYTES = _HELLO.size


def difference(ours: Hello, theirs: Hello) -> str | None:
    """The first field in which two nodes disagree, with both values; None if they agree."""
    own, peer = Side(ours.side).node(ours.index), Side(theirs.side).node(theirs.index)
    names = (field.name for field in fields(Geometry))
    for name, our, their in zip(names, ours.geometry, theirs.geometry, strict=True):
        if our != their:
            our_text, their_text = _shown(name, our), _shown(name, their)
            return f"{name} differs: {peer} has {their_text}, {own} has {our_text}"
    return None


def _shown(name: str, value: int) -> str:
    if name not in _NAMES:
        return str(value)
    names = {code: shown for shown, code in _NAMES[name].items()}
    return names.get(value, f"unknown code {value}")


class Channel:
    """A control connection while it shakes hands: whole frames, until a deadline.

    peer: what to call the other side in errors. Raises NodeDied when it closes or stays silent.
    """

    def __init__(self, connection: socket.socket, deadline: float, peer: str) -> None:
        self._socket = connection
        self._deadline = deadline
        self.peer = peer

    def send(self, kind: Frame, body: bytes, descriptors: list[int] | None = None) -> None:
        data = _PREFIX.pack(_MAGIC, VERSION, kind, len(body)) + body
        try:
            with self._bounded():
                sent = socket.send_fds(self._socket, [data], descriptors or [])
                if sent < len(data):
                    self._socket.sendall(data[sent:])
        except BrokenPipeError:  # who refuses closes at once, but its reason is still to be read
            self._next_prefix()
            raise NodeDied(f"{self.peer} left the handshake") from None

    def receive(self, kind: Frame, size: int) -> tuple[bytes, list[io.FileIO]]:
        """Body [size] and file descriptors of the next frame, which must be of this kind."""
        found, length, files = self._next_frame()
        if (found, length) != (kind, size):
            self.refuse(f"frame {found} of {length} bytes, expected {kind} of {size}")
        body, more = self._read(size)
        return body, files + more

    def receive_body(self, kind: Frame) -> bytes:
        """Body of the next frame, which must be of this kind, however long it is."""
        found, length, _ = self._next_frame()
        if found != kind or length > _MAX_BODY_BYTES:
            most = f"{kind} of at most {_MAX_BODY_BYTES}"
            self.refuse(f"frame {found} of {length} bytes, expected {most}")
        return self._read(length)[0]

    def refuse(self, reason: str) -> NoReturn:
        """Tell the peer, then raise ProtocolError with the same reason."""
        # The peer may be gone, or refuse us too; our reason is the one to raise here either way.
        with contextlib.suppress(NodeDied, ProtocolError):
            self.send(Frame.REFUSAL, reason.encode()[:_MAX_BODY_BYTES])
        raise ProtocolError(f"{self.peer}: {reason}")

    def receive_hello(self, ours: Hello, side: Side) -> Hello:
        """The peer's HELLO; refused when it has not this role or disagrees in any field."""
        body, _ = self.receive(Frame.HELLO, HELLO_BYTES)
        theirs = Hello.unpack(body)
        if theirs.side != side:
            self.refuse(f"role: expected {side.name.lower()} ({side}), found {theirs.side}")
        if (reason := difference(ours, theirs)) is not None:
            self.refuse(reason)
        return theirs

    def _next_frame(self) -> tuple[int, int, list[io.FileIO]]:
        """Kind, bytes of body and file descriptors of the next frame, of this version."""
        (magic, version, kind, length), files = self._next_prefix()
        if wants_tls(magic):
            self.refuse(WANTED)
        if magic != _MAGIC:
            self.refuse(f"peer begins with {magic!r}, M2N begins with {_MAGIC!r}")
        if version != VERSION:
            self.refuse(f"peer speaks M2N version {version}, this is {VERSION}")
        return kind, length, files

    def _next_prefix(self) -> tuple[tuple[bytes, int, int, int], list[io.FileIO]]:
        """The next frame's magic, version, kind and length. Raises ProtocolError on a refusal."""
        data, files = self._read(_PREFIX.size)
        magic, version, kind, length = _PREFIX.unpack(data)
        if magic == _MAGIC and kind == Frame.REFUSAL:
            text, _ = self._read(min(length, _MAX_BODY_BYTES))
            raise ProtocolError(f"{self.peer} refused: {_one_line(text)}")
        return (magic, version, kind, length), files

    def _read(self, size: int) -> tuple[bytes, list[io.FileIO]]:
        data, files = b"", []
        while len(data) < size:
            with self._bounded():
                chunk, descriptors, _, _ = socket.recv_fds(
                    self._socket, size - len(data), _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            files += [io.FileIO(descriptor, "r+") for descriptor in descriptors]
            if not chunk:
                raise NodeDied(f"{self.peer} closed the connection during the handshake")
            data += chunk
        return data, files

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        try:
            self._socket.settimeout(max(self._deadline - time.monotonic(), 1e-3))
            yield
        except BrokenPipeError:
            raise  # `send` has more to say
        except ProtocolError as error:  # of TLS
            raise ProtocolError(f"{self.peer}: {error}") from error
        except TimeoutError:
            raise NodeDied(f"{self.peer} did not answer the handshake in time") from None
        except OSError as error:
            raise NodeDied(f"{self.peer} left the handshake: {error}") from error


def _one_line(text: bytes) -> str:
    """What a log may show of what anybody may have said: nothing that a terminal obeys."""
    characters = text.decode(errors="replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in characters)


def peer_uid(connection: socket.socket) -> int:
    """The user that the process on the other end of a Unix socket runs as."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(data)[1]
    return uid
