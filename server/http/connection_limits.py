"""What one connection may cost, and how many there may be."""

import resource
from dataclasses import dataclass

MAX_CONNECTIONS = 8192
OTHER_FILES = 256
"""Of the process: its sockets to nodes, logs, and connections that are being refused."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """connections: that are served at a time. head_seconds: how long a request's headers may take
    from the connection's opening, or from their first byte. read_seconds: in each such time the
    client must read READ_BYTES of what waits for it, or all."""

    connections: int = MAX_CONNECTIONS
    head_seconds: float = 15.0
    read_seconds: float = 60.0


READ_BYTES = 2**16


def raise_file_limit() -> ConnectionLimits:
    """As many connections as this process may have open; it allows itself what it needs first."""
    wanted = MAX_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:
        soft = wanted if hard < 0 else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < 0:
        return ConnectionLimits()
    return ConnectionLimits(max(1, min(MAX_CONNECTIONS, soft - OTHER_FILES)))
