"""Whose request is being answered: what budgets and turns are kept for."""

from contextvars import ContextVar

from starlette.types import Scope

current_client: ContextVar[str] = ContextVar("current_client", default="")
"""Of the request in whose task this is asked: its key's name, or its address."""


def address_of(peer: object) -> str:
    """Whose a connection is, from what its socket says of it: of IPv6 the network of 64 bits, of
    which one host has as many addresses as it likes."""
    host = str(peer[0]) if isinstance(peer, tuple | list) and peer else "local"
    if ":" not in host or host.startswith("::ffff:"):
        return host
    return ":".join(host.partition("%")[0].split(":")[:4])


def client_of(scope: Scope, key: str | None) -> str:
    """key: a name of the key that opened, None where none was asked for."""
    return f"address {address_of(scope.get('client'))}" if key is None else f"key {key}"
