"""What the command line says when its listening address can't be had."""

import socket

import pytest

from megainfer.commands.listening import listen, reserve
from megainfer.errors import ConfigError


def test_a_port_in_use_asks_for_another_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use; .*--port"):
            reserve("127.0.0.1", port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_named(port: int) -> None:
    with pytest.raises(ConfigError, match=f"--port must be from 0 .* to 65535, not {port}$"):
        reserve("127.0.0.1", port)


def test_an_address_of_another_machine_asks_for_another_host() -> None:
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1 .*--host"):
        reserve("192.0.2.1", 0)


def test_who_connects_to_a_reserved_port_is_refused_until_it_is_listened_on() -> None:
    (sock,) = sockets = reserve("127.0.0.1", 0)
    with sock:
        address = sock.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        listen(sockets)
        socket.create_connection(address, timeout=5).close()


def test_a_port_that_another_took_in_between_is_named() -> None:
    first = reserve("127.0.0.1", 0)
    second = reserve(*first[0].getsockname())
    with first[0], second[0]:
        listen(first)
        with pytest.raises(ConfigError, match="Address already in use"):
            listen(second)
