"""`megainfer agent`."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer
from typer import Option

from megainfer.commands.host_options import (
    JOIN_SECONDS,
    TlsAuthority,
    TlsCertificate,
    TlsKey,
    TokenFile,
    check_seconds,
    open_tls,
    parse_address,
)
from megainfer.config import parse_bytes
from megainfer.console.logs import set_up_logs
from megainfer.errors import ConfigError
from megainfer.hosts.listening import Address
from megainfer.hosts.token import VARIABLE, find_token
from megainfer.model_folder.demo.model import DEMO_MODEL_NAME
from megainfer.model_folder.prepare import prepare
from megainfer.model_folder.resolve import ModelSource
from megainfer.tls.peers import PeerTls

EPILOG = """[bold]Example[/bold]

On each host that is to have nodes:

[cyan]megainfer agent --join 10.0.0.1:7300 --token-file token --host 10.0.0.2[/cyan]

And where clients come to:

[cyan]megainfer serve MODEL --agents 2 --listen-agents 10.0.0.1:7300 --token-file token[/cyan]"""


@dataclass(frozen=True)
class Offer:
    """This machine, to whom `join` says. host: its address, None: the one that leads there. model:
    what is to be here before it joins, None: it is where the supervisor has it. memory: bytes,
    None: what is available. tls: of its connections."""

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
        )
        return Agent(wish, told).run()


def agent(
    join: Annotated[
        str, Option(metavar="HOST:PORT", help="Where the supervisor listens (--listen-agents).")
    ],
    token_file: TokenFile = None,
    tls_certfile: TlsCertificate = None,
    tls_keyfile: TlsKey = None,
    tls_cafile: TlsAuthority = None,
    host: Annotated[
        str | None,
        Option(
            metavar="ADDRESS",
            show_default="the one that leads to --join",
            help="The IP address of this machine at which it, and its nodes, listen.",
        ),
    ] = None,
    port: Annotated[
        int, Option(help="Port at which the supervisor starts nodes here; 0 takes a free one.")
    ] = 0,
    name: Annotated[
        str | None,
        Option(show_default="the machine's", help="What the instance calls this host."),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            show_default="the path that serve has",
            help="Where the model is on this machine: a folder, or a GGUF file; or a hub id, which "
            f"is fetched before it joins, or {DEMO_MODEL_NAME}, which is made.",
        ),
    ] = None,
    revision: Annotated[
        str | None, Option(help="Branch, tag or commit of a --model that is a hub id.")
    ] = None,
    memory: Annotated[
        int | None,
        Option(
            parser=partial(parse_bytes, flag="--memory"),
            metavar="BYTES",
            show_default="what is available",
            help="What nodes here may take, such as 64GiB, where others need memory, too.",
        ),
    ] = None,
    join_timeout: Annotated[
        float,
        Option(
            metavar="SECONDS",
            help="How long to try to join, at the start and when the supervisor is lost.",
        ),
    ] = JOIN_SECONDS,
    drain_timeout: Annotated[
        float,
        Option(
            metavar="SECONDS",
            help="How long after SIGTERM nodes go on, for an instance that is told to end at the "
            "same time; it ends with that, and with a second signal at once.",
        ),
    ] = 0.0,
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Offer this machine to a supervisor elsewhere, which has nodes started here."""
    set_up_logs(log_level)
    token = find_token(token_file)
    if token is None:
        raise ConfigError(
            f"--token-file FILE is needed, the same as the supervisor's, or {VARIABLE} in the "
            "environment"
        )
    check_seconds("--join-timeout", join_timeout)
    check_seconds("--drain-timeout", drain_timeout)
    offer = Offer(
        parse_address(join, "--join"),
        token,
        name or socket.gethostname(),
        join_timeout,
        host,
        port,
        _source(model, revision),
        memory,
        drain_timeout,
        open_tls(tls_certfile, tls_keyfile, tls_cafile),
    )
    raise typer.Exit(offer.run(lambda text: print(text, flush=True)))


def _source(model: str | None, revision: str | None) -> ModelSource | None:
    if model is None:
        if revision is not None:
            raise ConfigError("--revision is for a hub id; name it by --model")
        return None
    return ModelSource(None if model == DEMO_MODEL_NAME else model, revision)


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
