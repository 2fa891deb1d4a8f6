"""`megainfer doctor`."""

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
    open_reception,
    open_tls,
)
from megainfer.console.logs import set_up_logs
from megainfer.errors import ConfigError
from megainfer.hosts.token import find_token

EPILOG = """[bold]Example[/bold]

In place of `megainfer serve`, while agents run on two hosts; they wait for it afterwards:

[cyan]megainfer doctor --agents 2 --listen-agents 10.0.0.1:7300 --token-file token[/cyan]"""


def doctor(
    agents: Annotated[int, Option(metavar="NUMBER", help="How many agents to wait for.")],
    listen_agents: Annotated[
        str | None, Option(metavar="ADDRESS:PORT", help="Where they join, as with `serve`.")
    ] = None,
    token_file: TokenFile = None,
    tls_certfile: TlsCertificate = None,
    tls_keyfile: TlsKey = None,
    tls_cafile: TlsAuthority = None,
    agents_timeout: Annotated[
        float, Option(metavar="SECONDS", help="How long to wait for them.")
    ] = JOIN_SECONDS,
) -> None:
    """Measure the links between the hosts of agents, and say what is wrong with them; and which
    GPUs they have."""
    from rich.console import Console
    from rich.table import Table

    from megainfer.hosts.doctor import examine, tell_gpus

    if agents < 2:
        raise ConfigError(f"--agents must be 2 or more, not {agents}: links are between two hosts")
    check_seconds("--agents-timeout", agents_timeout)
    set_up_logs("warning")
    console = Console(highlight=False)
    tls = open_tls(tls_certfile, tls_keyfile, tls_cafile)
    reception = open_reception(agents, listen_agents, find_token(token_file), tls=tls)
    try:
        hosts = reception.gather(agents, agents_timeout, console.print)
        table = Table("from", "to", "round trip", "MB/s", "clock", "", box=None, pad_edge=False)
        findings = list(examine(reception, [host.name for host in hosts]))
    finally:
        reception.close()  # without a word: agents go on waiting for whom they serve
    for source, target, link, problem in findings:
        table.add_row(
            *(source, target, f"{link.round_trip_seconds * 1e6:.0f} us"),
            *(f"{link.bytes_per_second / 1e6:.0f}", f"{link.ahead_seconds * 1e3:+.1f} ms"),
            problem or "good",
        )
    console.print(table)
    for line in tell_gpus(hosts):
        console.print(line)
    raise typer.Exit(any(finding.problem for finding in findings))
