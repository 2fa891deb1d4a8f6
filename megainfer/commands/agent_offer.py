"""What an agent offers a supervisor: the machine that it runs on."""

import socket
from collections.abc import Callable
from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.hosts.listening import Address
from megainfer.model_folder.prepare import prepare
from megainfer.model_folder.resolve import ModelSource
from megainfer.tls.peers import PeerTls


@dataclass(frozen=True)
class Offer:
    """This machine, to whom `join` says. host: its address, None: the one that leads there. model:
    what is to be here before it joins, None: it is where the supervisor has it. memory: bytes,
    None: what is available. gpus: those that nodes may have, by their numbers, None: all. tls: of
    its connections."""

    join: Address
    token: bytes
    name: str
    join_seconds: float
    host: str | None = None
    port: int = 0
    model: ModelSource | None = None
    memory: int | None = None
    drain_seconds: float = 0.0
    tls: PeerTls | None = None
    gpus: tuple[int, ...] | None = None

    def run(self, told: Callable[[str], None]) -> int:
        """As the agent of this machine, to its end: its exit status. A model is fetched first, once
        for all nodes here. Raises MegaInferError."""
        from megainfer.agent.agent import Agent, AgentWish
        from megainfer.agent.attendant import Ground

        folder = None if self.model is None else prepare(self.model)
        ground = Ground(self.token, self.host or own_address(*self.join), folder, self.tls)
        wish = AgentWish(
            self.join,
            self.name,
            self.port,
            self.join_seconds,
            ground,
            self.memory,
            self.drain_seconds,
            self.gpus,
        )
        return Agent(wish, told).run()


def own_address(host: str, port: int) -> str:
    """Of the interface that leads there; nothing is sent. Raises ConfigError."""
    try:
        ((family, kind, *_, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as asked:
            asked.connect(address)
            own: str = asked.getsockname()[0]
    except OSError as error:
        raise ConfigError(
            f"no way leads to --join {host}:{port} ({error}); name this machine's address by --host"
        ) from error
    return own
