"""`megainfer bench`: its own commands by name."""

import typer

from megainfer.commands.bench import latency, serve, throughput
from megainfer.commands.help import TopicalCommand

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure a server, or an engine without one.",
    rich_markup_mode="rich",
)
bench_app.command(cls=TopicalCommand, epilog=serve.EPILOG)(serve.serve)
bench_app.command(cls=TopicalCommand, epilog=latency.EPILOG)(latency.latency)
bench_app.command(cls=TopicalCommand, epilog=throughput.EPILOG)(throughput.throughput)
