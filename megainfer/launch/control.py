"""The control link between the supervisor and each of its children.

One end of a Unix SEQPACKET socket pair: message boundaries are kept by the kernel, and the end of
file tells either side at once that the other process is gone, however it died. What is longer than
the kernel would take (as counters of a model with many experts are) goes along as a file in memory.
"""

import fcntl
import os
import select
import socket
import sys
import termios
from array import array
from typing import Generic, TypeVar

import msgspec

from megainfer.errors import NodeDied
from megainfer.messages.message import Message, encode
from megainfer.messages.supervision import FromChild, ToChild, from_child_decoder, to_child_decoder

SHORT_BYTES = 1 << 16
"""A longer message goes as a file: by default a kernel takes 208 KiB, and fewer of one packet."""
WAITING_BYTES = 1 << 20
"""What may lie unread in a link, where the kernel allows so much."""
IN_A_FILE = b"\xc1"
"""The packet that comes with such a file; the one byte with which no message begins."""

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
            self._send(message)
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
            self._send(message, socket.MSG_DONTWAIT)
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
            data, files, _, _ = socket.recv_fds(self._socket, SHORT_BYTES, 1)
        except ConnectionResetError:
            data, files = b"", []
        if not data:
            raise NodeDied("the process at the other end of the control link is gone")
        for file in files:  # at most one
            with open(file, "rb") as memory:
                data = memory.read()
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

    def _send(self, message: Message, flags: int = 0) -> None:
        data = encode(message)
        if len(data) <= SHORT_BYTES:
            self._socket.send(data, flags)
            return
        if flags and self._unread() > SHORT_BYTES:  # files would pile up that nobody counts
            raise BlockingIOError
        with open(os.memfd_create("megainfer-message"), "w+b") as memory:
            memory.write(data)
            memory.seek(0)  # of the reader's, too
            # Not by socket.send_fds, which forgets the flags.
            rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [memory.fileno()])
            self._socket.sendmsg([IN_A_FILE], [rights], flags)

    def _unread(self) -> int:
        """Bytes of what was sent that the other end has yet to receive, as the kernel counts."""
        answer = bytearray(4)
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, answer)
        return int.from_bytes(answer, sys.byteorder)


Expected = TypeVar("Expected")

ParentLink = Link[ToChild]
"""A child's end."""
ChildLink = Link[FromChild]
"""The supervisor's end."""


def link_pair() -> tuple[ChildLink, ParentLink]:
    """(supervisor's end, child's end)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WAITING_BYTES)
    return Link(ours, from_child_decoder), Link(theirs, to_child_decoder)


def parent_link(fd: int) -> ParentLink:
    """The child's end of a pair that was inherited across exec as file descriptor `fd`."""
    return Link(socket.socket(fileno=fd), to_child_decoder)
