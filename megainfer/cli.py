"""The command line: the app, its commands by name, and how errors are told."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from megainfer.commands.chat import chat
from megainfer.commands.generate import generate
from megainfer.commands.serve import serve
from megainfer.commands.trace import trace
from megainfer.commands.version import version
from megainfer.errors import MegaInferError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve Mixture-of-Experts models with attention and experts on separate nodes.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (serve, chat, generate, trace, version):
    app.command()(command)


def main() -> None:
    """The console script: what a user did wrong is a line on stderr, not a traceback."""
    try:
        app()
    except MegaInferError as error:
        console = Console(stderr=True, highlight=False)
        console.print("[bold red]error:[/bold red]", escape(str(error)), soft_wrap=True)
        sys.exit(2)
