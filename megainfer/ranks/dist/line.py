"""The connection between rank 0 and a rank of another host, once they have met."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never, Protocol

from megainfer.errors import NodeDied
from megainfer.m2n.dist.listening import watch_network

SILENCE_SECONDS = 10
"""For which the other's host may not answer, before its end is that of the connection."""
LOST_SECONDS = 15.0
"""How long an end that has lost the other waits to be ended: whoever watches the other knows why it
is gone, and ends all ranks of the node with that for a reason."""
_READ_BYTES = 4096


def patience_for(lease: float) -> float:
    """Seconds that an end which has lost the other waits to be ended, where hosts count as lost
    after `lease` seconds of silence: longer than whoever watches them takes to notice."""
    return max(LOST_SECONDS, lease + SILENCE_SECONDS)


class HasDue(Protocol):
    """Where a process announces until when the work at hand should be done; 0: there is none."""

    due: float


@contextmanager
def not_due(page: HasDue | None) -> Iterator[None]:
    """While another host is waited for. How long that takes is no sign that this process hangs: the
    loss of the other is told by who watches it. What is at hand has as much longer to be done."""
    if page is None or not page.due:
        yield
        return
    due, began = page.due, time.monotonic()
    page.due = 0.0
    try:
        yield
    finally:
        page.due = due + time.monotonic() - began


class Line:
    """One thread reads and writes. name: of the other end, for errors. patience: see
    `patience_for`."""

    def __init__(
        self, connection: socket.socket, name: str, patience: float = LOST_SECONDS
    ) -> None:
        watch_network(connection, SILENCE_SECONDS)
        self._connection = connection
        self._name = name
        self._patience = patience
        self._unread = bytearray()

    def say(self, frame: bytes) -> None:
        """All of it. Raises NodeDied."""
        try:
            self._connection.settimeout(SILENCE_SECONDS)
            self._connection.sendall(frame)
        except OSError as error:
            self.lose(str(error))

    def hear(self, size: int, timeout: float) -> bytes | None:
        """The next frame, of so many bytes; None where it isn't there within `timeout` seconds.
        Raises NodeDied, ProtocolError."""
        deadline = time.monotonic() + timeout
        while len(self._unread) < size:
            try:
                self._connection.settimeout(max(deadline - time.monotonic(), 1e-6))
                more = self._connection.recv(_READ_BYTES)
            except TimeoutError as error:
                if error.errno is not None:  # the kernel's word for a host that doesn't answer
                    self.lose(str(error))
                return None
            except OSError as error:
                self.lose(str(error))
            else:
                if not more:
                    self.lose("its connection has ended")
                self._unread += more
        frame = bytes(self._unread[:size])
        del self._unread[:size]
        return frame

    def lose(self, why: str) -> Never:
        """Raises NodeDied, when nobody has ended this process with a better reason."""
        time.sleep(self._patience)  # who ends this process does it by a signal
        raise NodeDied(f"{self._name} is lost: {why}")

    def close(self) -> None:
        self._connection.close()
