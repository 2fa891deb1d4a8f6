"""A connected socket that speaks TLS, for one thread that reads and others that write."""

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from threading import Lock
from typing import Any

from megainfer.errors import ProtocolError
from megainfer.tls.end import TlsEnd

_PIECE_BYTES = 1 << 16


class TlsSocket(socket.socket):
    """Takes `connection` over. Descriptors can't be sent on it.

    Other than `ssl.SSLSocket` it may be read and written at once. What its first reads and writes
    have to wait for, both showing their certificates, its timeout bounds.
    """

    def __init__(self, connection: socket.socket, end: TlsEnd) -> None:
        timeout = connection.gettimeout()
        super().__init__(fileno=connection.detach())
        self.settimeout(timeout)
        self._end = end
        self._said = bytearray()
        self._lock = Lock()  # of the end: its state, and the order of what is sent

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As a socket's. Raises ProtocolError as `TlsEnd.feed`."""
        if not self._end.is_open:
            self._flush_first()
        while not self._said:
            data = super().recv(_PIECE_BYTES, flags)
            if not data:
                return b""
            with self._lock:
                try:
                    self._said += self._end.feed(data)
                except ProtocolError:
                    with suppress(OSError):  # it need not hear why
                        self._flush()
                    raise
                self._flush()
        piece = bytes(self._said[:size])
        del self._said[:size]
        return piece

    def recvmsg(self, size: int, ancillary: int = 0, flags: int = 0) -> tuple[bytes, Any, int, Any]:
        """As a socket's; no descriptor ever comes."""
        return self.recv(size), [], 0, None

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As a socket's."""
        with self._lock:
            self._end.seal(data)
            self._flush()

    def sendmsg(self, buffers: Iterable[Any], *ancillary: Any) -> int:
        """As a socket's, but for descriptors: all is sent."""
        data = b"".join(buffers)
        self.sendall(data)
        return len(data)

    def send_now(self, data: bytes) -> bool:
        """See `send_now`."""
        with self._lock:
            self._end.seal(data)
            whole = _written(self.fileno(), self._end.outgoing)
            self._end.outgoing.clear()
        return whole

    def _flush_first(self) -> None:
        """Whoever has connected speaks first, here if not yet."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._end.outgoing:
            super().sendall(self._end.outgoing)
            self._end.outgoing.clear()


def send_now(connection: socket.socket, data: bytes) -> bool:
    """Whether all of it has gone without waiting; if not, some may have, and the connection is good
    for nothing any more. connection: one with a timeout. Raises OSError where it is gone."""
    if isinstance(connection, TlsSocket):
        return connection.send_now(data)
    return _written(connection.fileno(), data)


def _written(descriptor: int, data: bytes | bytearray) -> bool:
    try:
        return os.write(descriptor, data) == len(data)
    except BlockingIOError:
        return False
