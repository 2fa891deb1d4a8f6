"""The command line: the app, its commands by name, and how errors are told."""

import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from megainfer.commands import (
    chat,
    collect_env,
    complete,
    generate,
    models,
    nodes,
    serve,
    trace,
    version,
)
from megainfer.commands.bench.app import bench_app
from megainfer.errors import MegaInferError, shortage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve Mixture-of-Experts models with attention and experts on separate nodes.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=complete.EPILOG)(complete.complete)
app.command(epilog=generate.EPILOG)(generate.generate)
app.add_typer(bench_app, name="bench")
app.command()(nodes.nodes)
app.command(epilog=nodes.SCALE_EPILOG)(nodes.scale)
app.command()(nodes.drain)
app.command()(nodes.restart)
app.command()(trace.trace)
app.command(epilog=models.EPILOG)(models.models)
app.command()(collect_env.collect_env)
app.command()(version.version)


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
