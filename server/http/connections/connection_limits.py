"""What one connection may cost, and how many there may be."""

import resource
from dataclasses import dataclass

MAX_CONNECTIONS = 8192
OTHER_FILES = 256
"""Of the process: its sockets to nodes, logs, and connections that are being refused."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """connections: that are served at a time. of_address: those from one address. head_seconds: how
    long a request's headers may take from the connection's opening, or from their first byte, and a
    TLS handshake. read_seconds: in each such time the client must read READ_BYTES of what waits for
    it, or all."""

    connections: int = MAX_CONNECTIONS
    of_address: int = MAX_CONNECTIONS // 2
    head_seconds: float = 15.0
    read_seconds: float = 60.0


READ_BYTES = 2**16


def raise_file_limit(of_address: int | None = None) -> ConnectionLimits:
    """As many connections as this process may have open; it allows itself what it needs first.

    of_address: see `ConnectionLimits`; None: half of all.
    """
    wanted = MAX_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    connections = MAX_CONNECTIONS if soft < 0 else min(MAX_CONNECTIONS, soft - OTHER_FILES)
    connections = max(1, connections)
    return ConnectionLimits(connections, of_address or max(1, connections // 2))
