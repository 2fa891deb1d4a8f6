"""`megainfer trace`: what every node of a running server did, as a file for Perfetto."""

from pathlib import Path
from typing import Annotated

import typer

from megainfer.commands.admin_client import DEFAULT_URL, ask
from megainfer.errors import ConfigError
from megainfer.instruments.trace_events import MAX_TRACE_SECONDS, MIN_TRACE_SECONDS

MARGIN_SECONDS = 60.0
"""Beyond the interval itself, for a server that has much to send."""


def trace(
    url: Annotated[str, typer.Option(help="Where the server is.")] = DEFAULT_URL,
    seconds: Annotated[float, typer.Option(help="How long to look, 0.01 to 60.")] = 2.0,
    output: Annotated[
        Path, typer.Option(help="Where to write it; open it at ui.perfetto.dev.")
    ] = Path("trace.json"),
    admin_key: Annotated[
        str | None, typer.Option("--admin-key", help="Of the server's admin keys, one.")
    ] = None,
) -> None:
    """Record what attention and expert nodes do, for Perfetto or chrome://tracing."""
    document = fetch_trace(url, seconds, admin_key)
    try:
        output.write_bytes(document)
    except OSError as error:
        raise ConfigError(f"--output {output} can't be written: {error}") from error
    print(f"{output}: {len(document)} bytes; open it at https://ui.perfetto.dev")


def fetch_trace(url: str, seconds: float, admin_key: str | None) -> bytes:
    """The trace's JSON. Raises MegaInferError when the server doesn't give it."""
    if not MIN_TRACE_SECONDS <= seconds <= MAX_TRACE_SECONDS:
        raise ConfigError(
            f"--seconds must be from {MIN_TRACE_SECONDS:g} to {MAX_TRACE_SECONDS:g}, not {seconds}"
        )
    params = {"seconds": seconds}
    return ask("GET", url, "/debug/trace", admin_key, seconds + MARGIN_SECONDS, params=params)
