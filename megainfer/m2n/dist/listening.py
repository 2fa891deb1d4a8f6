"""Where an expert node can be found: a TCP port, and on its own host a sign that points there."""

import ipaddress
import socket
import time
from typing import NamedTuple

from megainfer.errors import ConfigError, NodeDied, ProtocolError
from megainfer.m2n.host.meeting import Doorman, Listener, dial, expert_address

_BACKLOG = 128
_RETRY_SECONDS = 0.01
_MOST_SIGN_BYTES = 128
_KEEPALIVE_SECONDS = 1
_KEEPALIVES = 3


class Address(NamedTuple):
    """host: an IP address."""

    host: str
    port: int


class TcpListener:
    """`meeting.Door` at one interface's address."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self.address = Address(*listening.getsockname()[:2])

    @classmethod
    def create(cls, host: str) -> "TcpListener":
        """At any free port. Raises ConfigError unless `host` is one address of this machine."""
        listening = socket.socket(_family(host), socket.SOCK_STREAM)
        try:
            listening.bind((host, 0))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise ConfigError(f"cannot listen at {host!r}: {error}") from error
        return cls(listening)

    def accept(self, deadline: float | None) -> socket.socket:
        """See `meeting.Listener.accept`; who it is has yet to be proved."""
        left = None if deadline is None else max(deadline - time.monotonic(), 1e-3)
        self._socket.settimeout(left)
        return self._socket.accept()[0]

    def shut(self) -> None:
        """See `meeting.Listener.shut`."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def dial_tcp(address: Address, name: str, deadline: float) -> socket.socket:
    """Connect to whoever is called so, trying again until it listens. Raises NodeDied."""
    while True:
        left = max(deadline - time.monotonic(), 1e-3)
        try:
            return socket.create_connection(address, timeout=left)
        except OSError as error:
            if time.monotonic() + _RETRY_SECONDS > deadline:
                where = f"{address.host}:{address.port}"
                raise NodeDied(f"{name} does not answer at {where}: {error}") from error
            time.sleep(_RETRY_SECONDS)  # nothing tells when somebody begins to listen


def watch_network(connection: socket.socket, silence: int) -> None:
    """Have the kernel end a connection whose other host has not answered for so many seconds, or
    does not keep it alive; a read waits for as long."""
    connection.settimeout(silence)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence * 1000)


class Sign:
    """Tells nodes of the same host and user where an expert node listens."""

    def __init__(self, token: str, expert: tuple[int, int], address: Address) -> None:
        """expert: index and incarnation. Raises ConfigError when somebody else has its place."""
        self._text = f"{address.host} {address.port}".encode()
        listener = Listener.create(expert_address(token, *expert))
        self._doorman = Doorman(listener, f"expert node {expert[0]}", self._tell)

    def close(self) -> None:
        self._doorman.close()

    def _tell(self, connection: socket.socket, deadline: float) -> None:
        with connection:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                connection.sendall(self._text)
            except OSError as error:
                raise NodeDied(f"it did not read this node's address: {error}") from error


def read_sign(token: str, expert: tuple[int, int], deadline: float) -> Address:
    """Where this expert node (index, incarnation) listens, once it does.

    Raises NodeDied when it doesn't in time, ProtocolError when somebody else has its place.
    """
    with dial(expert_address(token, *expert), expert[0], deadline) as connection:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        text = b""
        try:
            while len(text) < _MOST_SIGN_BYTES and (more := connection.recv(_MOST_SIGN_BYTES)):
                text += more
        except OSError as error:
            raise NodeDied(f"expert node {expert[0]} does not say where it is: {error}") from error
    host, _, port = text.decode(errors="replace").partition(" ")
    if not port.isdecimal():
        raise ProtocolError(f"expert node {expert[0]} says that it is at {text!r:.80}")
    return Address(host, int(port))


def _family(host: str) -> socket.AddressFamily:
    """Raises ConfigError for what is no address of one interface."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"M2N listens at an IP address such as 10.0.0.3, not {host!r}") from None
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"M2N listens at the address of one interface, not at all: {host!r}")
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET
