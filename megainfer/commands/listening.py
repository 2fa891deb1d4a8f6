"""The socket on which the server listens, and how its address is shown."""

import errno
import ipaddress
import resource
import socket
from collections.abc import Sequence

from megainfer.errors import ConfigError

BACKLOG = 2048
FEWEST_FILES = 64
FILES_A_NODE = 4  # of each peer: a connection and a bell, and twice as many while they meet


def reserve(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """So many sockets on one address, over which the kernel will spread connections evenly. Nobody
    is heard on them yet: who connects is refused.

    Raises ConfigError when the address can't be had. One that several are to share is asked for
    alone first: else another instance of this user would share it, too.
    """
    if count == 1:
        return [_bound(host, port, shared=False)]
    with _bound(host, port, shared=False) as first:
        port = first.getsockname()[1]
    return [_bound(host, port, shared=True) for _ in range(count)]


def listen(sockets: Sequence[socket.socket]) -> None:
    """From now on who connects waits to be heard. Raises ConfigError where another was faster."""
    for sock in sockets:
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            host, port = sock.getsockname()[:2]
            raise ConfigError(_why_not_listening(error, host, port)) from error


def _bound(host: str, port: int, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(_why_not_listening(error, host, port)) from error
    return sock


def check_descriptors(nodes: int) -> None:
    """Raises ConfigError where no instance of so many nodes can have the files that it needs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FEWEST_FILES + FILES_A_NODE * nodes
    if most != resource.RLIM_INFINITY and most < needed:
        raise ConfigError(
            f"each process may have {most} files open (ulimit -Hn), and {nodes} nodes with their "
            f"API server need {needed}"
        )


def _why_not_listening(error: OSError | OverflowError, host: str, port: int) -> str:
    if isinstance(error, OverflowError):
        return f"--port must be from 0 (any free one) to 65535, not {port}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        fix = "name an address of this machine with --host"
    else:
        fix = "choose another with --port (0 takes a free one)"
    return f"can't listen on {host} port {port}: {error.strerror}; {fix}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown_host(host: str) -> str:
    """As it stands in a URL that works on this machine."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
