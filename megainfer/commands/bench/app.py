"""`megainfer bench`: its own commands by name."""

import typer

from megainfer.commands.bench import latency, serve, throughput

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Measure a server, or an engine without one.",
    rich_markup_mode="rich",
)
bench_app.command(epilog=serve.EPILOG)(serve.serve)
bench_app.command(epilog=latency.EPILOG)(latency.latency)
bench_app.command(epilog=throughput.EPILOG)(throughput.throughput)
