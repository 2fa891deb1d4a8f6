"""`megainfer serve`."""

import socket
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer import Option

from megainfer.commands.config_file import ConfigFile
from megainfer.commands.engine_options import EngineOptions, ModelArgument
from megainfer.commands.host_options import HostOptions
from megainfer.commands.http_options import HTTP, HttpOptions
from megainfer.commands.launcher_options import LauncherOptions
from megainfer.commands.launching import Launching
from megainfer.commands.listening import (
    check_descriptors,
    is_loopback,
    listen,
    reserve,
    shown_host,
)
from megainfer.commands.options import takes_options
from megainfer.commands.plan_file import PlanFile
from megainfer.config import EngineConfig
from megainfer.console.logs import set_up_logs
from megainfer.console.terminal import TerminalObserver
from megainfer.errors import ConfigError, MegaInferError
from megainfer.frontend.serving_options import SHORT_KEY, ServingOptions
from megainfer.frontend.shared_loads import SharedLoads
from megainfer.hosts.reception import Reception
from megainfer.launch.hosts.spread import Site
from megainfer.launch.machine import read_machine
from megainfer.launch.plan_text import describe_requests
from megainfer.launch.station import Station
from megainfer.messages.to_child import Reload
from megainfer.model_folder.prepare import prepare
from megainfer.model_folder.resolve import ModelSource, served_name
from megainfer.sharing.budgets import Budgets
from megainfer.supervise.supervisor import Supervisor

if TYPE_CHECKING:
    from megainfer.model_folder.deployment import Deployment

EPILOG = """[bold]Examples[/bold]

The demo model, with one attention and one expert node:

[cyan]megainfer serve[/cyan]

A model of one's own, two nodes of each role, context cut to 8192 tokens:

[cyan]megainfer serve path/to/model --attn-gpus 2 --ffn-gpus 2 --max-model-len 8K[/cyan]

What would run where, without running it, with options out of a file:

[cyan]megainfer serve --config serve.yaml --dry-run[/cyan]"""


@takes_options
def serve(
    context: typer.Context,
    engine: EngineOptions,
    http: HttpOptions,
    hosts: HostOptions,
    launcher: LauncherOptions,
    model: ModelArgument = None,
    host: Annotated[str, Option(rich_help_panel=HTTP, help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, Option(rich_help_panel=HTTP, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        Option(rich_help_panel=HTTP, help="What the API calls the model; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would run where, and exit.")
    ] = False,
    config: ConfigFile = None,
    plan: PlanFile = None,
) -> None:
    """Serve a model over an OpenAI-compatible API."""
    names = tuple(served_model_name or [served_name(model)])
    options = http.serving(names, is_loopback(host))
    if (read := _REREAD.get()) is not None:
        read.append(options)
        return
    set_up_logs(http.log_level)
    wish = engine.config(model)
    source = ModelSource(wish.model, wish.revision)
    launching = Launching(hosts, launcher, source, options.drain_seconds, http.log_level)
    if (rank := launching.rank()) is not None:
        from megainfer.launchers.apart import go_apart

        go_apart()
        if rank.rank > 0:
            raise typer.Exit(launching.run_agent(rank, partial(print, flush=True)))
    reread = partial(_reread, context, _own_arguments())
    raise typer.Exit(_serve(wish, options, launching, host, port, dry_run, reread))


_REREAD: ContextVar[list[ServingOptions] | None] = ContextVar("reread", default=None)
"""Where the command only says what its options are now."""


def _reread(context: typer.Context, args: Sequence[str]) -> Reload:
    """The keys and limits that the same command line asks for now, with the files that it names.

    Raises ConfigError.
    """
    read: list[ServingOptions] = []
    token = _REREAD.set(read)
    try:
        context.command.main(list(args), prog_name="serve", standalone_mode=False)
    except MegaInferError:
        raise
    except Exception as error:  # whatever the parser makes of a file that was changed meanwhile
        raise ConfigError(f"the command line can't be read again: {error}") from error
    finally:
        _REREAD.reset(token)
    (options,) = read
    limits = options.limits
    return Reload(
        options.api_keys,
        options.admin_keys,
        limits.queued,
        limits.queue_seconds,
        limits.total_seconds,
        options.recovery_seconds,
    )


def _own_arguments() -> list[str]:
    """What stands behind the command's name."""
    return sys.argv[sys.argv.index("serve") + 1 :] if "serve" in sys.argv else sys.argv[1:]


def _about_keys(options: ServingOptions, host: str) -> Iterator[str]:
    """What whoever starts it should know of who may use it."""
    if not options.loopback and not options.asks_for_key:
        yield f"open       to whoever reaches {host}: no key is asked for; --api-key sets one"
    if options.has_short_keys:
        yield f"keys       of fewer than {SHORT_KEY} characters can be guessed; make longer ones"


def _serve(
    config: EngineConfig,
    options: ServingOptions,
    launching: Launching,
    host: str,
    port: int,
    dry_run: bool,
    reread: Callable[[], Reload],
) -> int:
    from megainfer.model_folder.deployment import plan_deployment

    console = Console(highlight=False)
    began = monotonic()
    sockets = reserve(host, port, options.api_servers)  # before a model is fetched for long
    machine, reception = read_machine(), launching.reception(sockets)
    if reception is not None and not dry_run:  # no agent that has joined would wait for so long
        prepare(ModelSource(config.model, config.revision))
    gathering = monotonic()
    site = None if reception is None else _gather(reception, launching, console)
    waited = monotonic() - gathering
    deployment = plan_deployment(
        config, machine, not dry_run, options.budgets, options.api_servers, site
    )
    plan = deployment.plan
    preparing = monotonic() - began - waited
    budgets = Budgets.of(options.budgets, plan.max_model_len)
    requests = describe_requests(plan, budgets, machine, options.api_servers)
    for line in (*deployment.describe(), *requests):
        shown = _wrapped(line, console.width) if console.is_terminal else line
        console.print(shown, soft_wrap=True, markup=False)
    if options.hardware is not None:
        from megainfer.launch.expectation import expectation_of

        expectation_of(plan, options.hardware, options.hardware_name)  # or it says what is missing
    check_descriptors(plan.num_attention + plan.num_expert)
    for line in _about_keys(options, host):
        console.print(line, soft_wrap=True, markup=False)
    if dry_run:
        if reception is not None and reception.launcher is not None:
            reception.dismiss()
        elif reception is not None:
            reception.close()  # without a word: agents go on waiting for whom they serve
        return 0
    listen(sockets)
    url = f"http{'s' * options.uses_tls}://{shown_host(host)}:{sockets[0].getsockname()[1]}"
    observer = TerminalObserver(console, plan, url, options.names[0], options.asks_for_key)
    loads = SharedLoads(options.api_servers)
    serving = partial(
        _run_server, deployment=deployment, options=options, sockets=sockets, loads=loads
    )
    supervisor = Supervisor(
        plan,
        observer,
        server=serving,
        held=sockets,
        drain_seconds=options.drain_seconds,
        servers=options.api_servers,
        reread=reread,
        reception=reception,
    )
    if reception is not None:
        supervisor.startup.add("agents", waited)
    supervisor.startup.add("model", preparing)
    return supervisor.run()


def _gather(reception: Reception, launching: Launching, console: Console) -> Site:
    """Wait for the agents. Raises NodeDied where they don't come in time."""

    def told(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    agents, seconds = launching.agents, launching.hosts.agents_timeout
    told(f"waiting for {agents} agents at {reception.address}, {seconds:g} s at most")
    hosts = reception.gather(agents, seconds, told)
    return Site(hosts, launching.hosts.places(), reception.load_from_peer)


def _wrapped(line: str, width: int) -> str:
    """At spaces, and so that the first word of a description stands out."""
    return textwrap.fill(line, width, subsequent_indent=" " * 11, break_long_words=False)


def _run_server(
    station: Station,
    server: int,
    deployment: "Deployment",
    options: ServingOptions,
    sockets: Sequence[socket.socket],
    loads: SharedLoads,
) -> None:
    # Imported in the server's own process: the supervisor has no use for a web framework.
    from server.process import ServerSeat, run_server

    run_server(station, deployment, options, ServerSeat(server, sockets, loads))
