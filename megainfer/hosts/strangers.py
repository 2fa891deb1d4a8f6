"""Who has connected from another host, and hasn't yet proved itself and said what it wants."""

import logging
import socket
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from megainfer.errors import MegaInferError
from megainfer.hosts.listening import Address
from megainfer.hosts.wire import Wire
from megainfer.instruments.seldom import Seldom
from megainfer.tls.peers import PeerTls

MOST = 64
"""The oldest of too many makes room."""
AT_ONCE = 16
"""Who may come in one turn of the caller's loop, so that a flood of them doesn't hold it up."""
LOG_SECONDS = 1.0

log = logging.getLogger(__name__)
log.addFilter(Seldom(LOG_SECONDS))  # whoever reaches the port can cause its lines
Incoming = TypeVar("Incoming")


class Strangers(Generic[Incoming]):
    """Those at one listening socket, which is this one's to close from now on.

    kind: what one is called in the log. lease, tls: of each one's `Wire`. Until one has
    proved that it has the token it costs a socket and what a kernel holds of it, and no process.
    """

    def __init__(
        self,
        listening: socket.socket,
        token: bytes,
        decoder: "msgspec.msgpack.Decoder[Incoming]",
        kind: str,
        lease: float,
        tls: PeerTls | None = None,
    ) -> None:
        self._listening = listening
        self._token = token
        self._decoder = decoder
        self._kind = kind
        self._lease = lease
        self._tls = tls
        self._wires: list[Wire[Incoming]] = []

    @property
    def address(self) -> Address:
        """Where they come to."""
        return Address(*self._listening.getsockname()[:2])

    def filenos(self) -> list[int]:
        """To be polled for reading."""
        return [self._listening.fileno(), *(wire.fileno() for wire in self._wires)]

    def heard(self) -> Iterator[tuple[Wire[Incoming], list[Incoming]]]:
        """Those that have proved themselves and said something, with that: each is a stranger no
        more as soon as it is given, and its wire the caller's. Never blocks."""
        self._accept()
        for wire in list(self._wires):
            try:
                said = wire.pump()
            except MegaInferError as error:
                self._send_away(wire, str(error))
                continue
            if said:
                self._wires.remove(wire)
                yield wire, said

    def close(self) -> None:
        """In a child, too: hold nothing of them."""
        self._listening.close()
        for wire in self._wires:
            wire.close()
        self._wires = []

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, (host, port, *_) = self._listening.accept()
            except OSError:  # nobody is there, or has left already, or no descriptor is free
                return
            if len(self._wires) >= MOST:
                self._send_away(self._wires[0], "there are too many who say nothing")
            name = f"{self._kind} at {host}:{port}"
            self._wires.append(
                Wire(
                    connection, self._token, self._decoder, name, False, self._lease, tls=self._tls
                )
            )

    def _send_away(self, wire: Wire[Incoming], reason: str) -> None:
        log.warning("nobody let in: %s", reason)
        wire.close()
        self._wires.remove(wire)
