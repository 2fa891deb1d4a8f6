"""The control link between the supervisor and each of its children.

One end of a Unix SEQPACKET socket pair: message boundaries are kept by the kernel, and the end of
file tells either side at once that the other process is gone, however it died.
"""

import select
import socket
from typing import Generic, TypeVar

import msgspec

from megainfer.errors import NodeDied
from megainfer.messages import (
    FromChild,
    Message,
    ToChild,
    encode,
    from_child_decoder,
    to_child_decoder,
)

MAX_MESSAGE_BYTES = 1 << 20

Incoming = TypeVar("Incoming")


class Link(Generic[Incoming]):
    """One end; `Incoming` is the union of messages that arrive at it."""

    def __init__(self, sock: socket.socket, decoder: "msgspec.msgpack.Decoder[Incoming]") -> None:
        self._socket = sock
        self._decoder = decoder

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Raises NodeDied when the other end is gone."""
        try:
            self._socket.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NodeDied("the process at the other end of the control link is gone") from error

    def offer(self, message: Message, timeout: float = 0.0) -> bool:
        """Send unless the other end leaves its messages unread for `timeout` seconds; whether it
        was sent. For what may be lost, to a process that may hang.

        Raises NodeDied when the other end is gone.
        """
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        poller.poll(timeout * 1000)
        try:
            self._socket.send(encode(message), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NodeDied("the process at the other end of the control link is gone") from error
        return True

    def receive(self, timeout: float) -> Incoming | None:
        """The next message, or None when none came within `timeout` seconds (0: don't wait).

        Raises NodeDied when the other end is gone.
        """
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if not poller.poll(timeout * 1000):
            return None
        try:
            data = self._socket.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise NodeDied("the process at the other end of the control link is gone")
        return self._decoder.decode(data)

    def expect(self, kind: "type[Expected]", timeout: float) -> "Expected":
        """The next message, which must be a `kind` and come within `timeout` seconds."""
        message = self.receive(timeout)
        if not isinstance(message, kind):
            what = "nothing" if message is None else type(message).__name__
            raise NodeDied(f"{what} came instead of {kind.__name__} within {timeout:g} s")
        return message

    def close(self) -> None:
        self._socket.close()


Expected = TypeVar("Expected")

ParentLink = Link[ToChild]
"""A child's end."""
ChildLink = Link[FromChild]
"""The supervisor's end."""


def link_pair() -> tuple[ChildLink, ParentLink]:
    """(supervisor's end, child's end)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE_BYTES)
    return Link(ours, from_child_decoder), Link(theirs, to_child_decoder)


def parent_link(fd: int) -> ParentLink:
    """The child's end of a pair that was inherited across exec as file descriptor `fd`."""
    return Link(socket.socket(fileno=fd), to_child_decoder)
