"""`megainfer bench`: its own commands by name."""

import typer

from megainfer.commands.bench.serve import EPILOG, serve

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure a server, or an engine without one.",
    rich_markup_mode="rich",
)
bench_app.command(epilog=EPILOG)(serve)
