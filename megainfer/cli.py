"""The command line: the app, its commands by name, and how errors are told."""

import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from megainfer.commands import (
    agent,
    calibrate,
    chat,
    collect_env,
    complete,
    doctor,
    generate,
    models,
    nodes,
    serve,
    trace,
    version,
)
from megainfer.commands.bench.app import bench_app
from megainfer.commands.help import TopicalCommand
from megainfer.commands.plan import command as plan
from megainfer.commands.rl.app import rl_app
from megainfer.errors import MegaInferError, shortage

app = typer.Typer(
    no_args_is_help=True,
    help="Serve Mixture-of-Experts models with attention and experts on separate nodes.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command, epilog in (
    (serve.serve, serve.EPILOG),
    (agent.agent, agent.EPILOG),
    (doctor.doctor, doctor.EPILOG),
    (chat.chat, chat.EPILOG),
    (complete.complete, complete.EPILOG),
    (generate.generate, generate.EPILOG),
    (plan.plan, plan.EPILOG),
    (nodes.nodes, None),
    (nodes.scale, nodes.SCALE_EPILOG),
    (nodes.drain, None),
    (nodes.restart, None),
    (trace.trace, None),
    (calibrate.calibrate, calibrate.EPILOG),
    (models.models, models.EPILOG),
    (collect_env.collect_env, None),
    (version.version, None),
):
    app.command(cls=TopicalCommand, epilog=epilog)(command)
app.add_typer(bench_app, name="bench")
app.add_typer(rl_app, name="rl")


@app.callback()
def common(
    shows_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=version.show_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Serve Mixture-of-Experts models with attention and experts on separate nodes."""


def main() -> None:
    """The console script: what a user did wrong, or the machine doesn't allow, is a line on stderr,
    not a traceback."""
    try:
        app()
    except MegaInferError as error:
        _fail(str(error))
    except BrokenPipeError:
        raise  # whoever read has left: typer's affair
    except (OSError, MemoryError) as error:
        _fail(shortage(error) or str(error))


def _fail(message: str) -> NoReturn:
    console = Console(stderr=True, highlight=False)
    console.print("[bold red]error:[/bold red]", escape(message), soft_wrap=True)
    sys.exit(2)
