"""Takes connections from the listening socket, as many as may be there, and no faster than others
can be served meanwhile.

asyncio's own server knows of a connection only when its TLS handshake is done, takes all that wait
at once, and logs a traceback for each that it has no descriptor for.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from megainfer.instruments.seldom import Seldom
from server.http.client import address_of
from server.http.connections.bounded_connection import BoundedConnection
from server.http.connections.connection_limits import OTHER_FILES, ConnectionLimits

AT_ONCE = 8
"""Connections that are taken before others have their turn: a millisecond's work."""
PAUSE_SECONDS = 0.2
"""For which none is taken when there was no descriptor for one."""
log = logging.getLogger(__name__)
log.addFilter(Seldom())

Make = Callable[[bool], BoundedConnection]
"""A protocol for a new connection; whether it is one too many."""


class Acceptor:
    """`start`, then `close`. Counts connections from when they are accepted to their end,
    handshakes included, all together and of each address."""

    def __init__(
        self,
        sock: socket.socket,
        limits: ConnectionLimits,
        make: Make,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._sock = sock
        self._limits = limits
        self._make = make
        self._tls = tls
        self._of: Counter[str] = Counter()
        self._count = 0
        self._beginning: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take connections from now on."""
        self._loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Take none any more, and end those whose handshake isn't done."""
        self._loop.remove_reader(self._sock.fileno())
        if self._pause is not None:
            self._pause.cancel()
        for task in self._beginning:
            task.cancel()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("a connection could not be taken: %s", error)
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._listen)
                return
            self._take(connection, address_of(address))

    def _take(self, connection: socket.socket, address: str) -> None:
        excess = self._count - self._limits.connections
        too_many = excess >= 0 or self._of[address] >= self._limits.of_address
        beyond = self._of[address] >= self._limits.of_address + OTHER_FILES // 4
        if beyond or excess >= OTHER_FILES // 2:
            connection.close()
            return
        self._count += 1
        self._of[address] += 1
        task = self._loop.create_task(self._begin(connection, address, too_many))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket, address: str, too_many: bool) -> None:
        connection.setblocking(False)
        protocol = self._make(too_many)
        protocol.at_end = lambda: self._ended(address)
        handshake = (
            {} if self._tls is None else {"ssl_handshake_timeout": self._limits.head_seconds}
        )
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._tls, **handshake
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            log.debug("a connection ended before it began: %s", error)
        finally:
            if not protocol.was_made:
                connection.close()
                self._ended(address)

    def _ended(self, address: str) -> None:
        self._count -= 1
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]
