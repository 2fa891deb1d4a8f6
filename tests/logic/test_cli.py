"""What the command line says when its listening address can't be had."""

import socket

import pytest

from megainfer.commands.listening import listen
from megainfer.errors import ConfigError


def test_a_port_in_use_asks_for_another_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use; .*--port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_named(port: int) -> None:
    with pytest.raises(ConfigError, match=f"--port must be from 0 .* to 65535, not {port}$"):
        listen("127.0.0.1", port)


def test_an_address_of_another_machine_asks_for_another_host() -> None:
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1 .*--host"):
        listen("192.0.2.1", 0)
