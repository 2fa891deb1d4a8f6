"""`megainfer agent`."""

import socket
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from megainfer.commands.host_options import (
    JOIN_SECONDS,
    TokenFile,
    check_seconds,
    parse_address,
)
from megainfer.console.logs import set_up_logs
from megainfer.errors import ConfigError
from megainfer.hosts.token import read_token

EPILOG = """[bold]Example[/bold]

On each host that is to have nodes:

[cyan]megainfer agent --join 10.0.0.1:7300 --token-file token --host 10.0.0.2[/cyan]

And where clients come to:

[cyan]megainfer serve MODEL --agents 2 --listen-agents 10.0.0.1:7300 --token-file token[/cyan]"""


def agent(
    join: Annotated[
        str, Option(metavar="HOST:PORT", help="Where the supervisor listens (--listen-agents).")
    ],
    token_file: TokenFile = None,
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
        Path | None,
        Option(
            metavar="FOLDER",
            show_default="the path that serve has",
            help="Where the model is on this machine.",
        ),
    ] = None,
    join_timeout: Annotated[
        float,
        Option(
            metavar="SECONDS",
            help="How long to try to join, at the start and when the supervisor is lost.",
        ),
    ] = JOIN_SECONDS,
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Offer this machine to a supervisor elsewhere, which has nodes started here."""
    from megainfer.agent.agent import Agent, AgentWish
    from megainfer.agent.attendant import Ground

    set_up_logs(log_level)
    if token_file is None:
        raise ConfigError("--token-file FILE is needed, the same as the supervisor's")
    check_seconds("--join-timeout", join_timeout)
    where = parse_address(join, "--join")
    ground = Ground(read_token(token_file), host or _own_address(*where), model)
    wish = AgentWish(where, name or socket.gethostname(), port, join_timeout, ground)
    raise typer.Exit(Agent(wish, lambda text: print(text, flush=True)).run())


def _own_address(host: str, port: int) -> str:
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
