"""Under which names a server that only this machine can reach may be asked.

A web page can have its own name resolve to 127.0.0.1 (DNS rebinding); its browser then takes this
server for the page's own and lets it read all. Such a request still carries the page's name.
"""

import ipaddress
from collections.abc import Collection

from server.http.errors import ErrorReport

ANY = "*"


def refuse_host(header: str, allowed: Collection[str]) -> ErrorReport | None:
    """What is wrong with a Host header; None where nothing is. allowed: further names, as
    `host_name` gives them."""
    name = host_name(header)
    # Browsers always send one. Addresses resolve to nothing else, nor do names below localhost.
    if not name or ANY in allowed or name in allowed or _is_address(name):
        return None
    if name == "localhost" or name.endswith(".localhost"):
        return None
    return ErrorReport(
        403,
        f"this server listens on this machine alone and asks for no key, so it answers only to "
        f"localhost and to addresses, not to {name!r:.100}; start it with --allowed-hosts and the "
        "name, or with --api-key",
        code="host_not_allowed",
    )


def host_name(header: str) -> str:
    """Without port, brackets and the dot of a whole name, in lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
