"""Where a process listens for other hosts: at one address of this one, never at all of them."""

import socket
from ipaddress import ip_address
from typing import NamedTuple

from megainfer.errors import ConfigError

_BACKLOG = 128


class Address(NamedTuple):
    """host: an IP address, or a name where it is to be connected to."""

    host: str
    port: int

    def __str__(self) -> str:
        """
        >>> str(Address("10.0.0.1", 7300)), str(Address("::1", 7300))
        ('10.0.0.1:7300', '[::1]:7300')
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def listen(address: Address, flag: str) -> socket.socket:
    """A socket that never blocks, at one address of this machine; port 0: any that is free.

    flag: the option that said so. Raises ConfigError.
    """
    try:
        ip = ip_address(address.host)
    except ValueError:
        raise ConfigError(
            f"{flag} must be an IP address such as 10.0.0.1, not {address.host!r}"
        ) from None
    if ip.is_unspecified or ip.is_multicast:
        raise ConfigError(f"{flag} must be the address of one interface, not {address.host!r}")
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"{flag}: can't listen at {address.host}:{address.port}: {error}"
        ) from error
    listening.setblocking(False)
    return listening
