"""Flags of `megainfer serve` for the API server, as against the nodes."""

from pathlib import Path
from typing import Annotated

import typer

ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        help="Clients must send this key; repeatable. Others on this machine can see command "
        "lines: prefer --api-key-file.",
    ),
]
ApiKeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", help="A file of such keys, one a line.")
]
AdminKey = Annotated[
    list[str] | None,
    typer.Option(
        "--admin-key", help="Opens /server_info and /debug as well; repeatable. Others can't."
    ),
]
AdminKeyFile = Annotated[
    Path | None, typer.Option("--admin-key-file", help="A file of such keys, one a line.")
]
PublicMetrics = Annotated[
    bool, typer.Option("--public-metrics", help="Serve /metrics without a key.")
]
AllowedOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-origins",
        help="Web pages from this origin may call the API, * for all; repeatable.",
    ),
]
SslCertfile = Annotated[
    Path | None, typer.Option("--ssl-certfile", help="Certificate (PEM); makes it HTTPS.")
]
SslKeyfile = Annotated[
    Path | None, typer.Option("--ssl-keyfile", help="The certificate's private key (PEM).")
]
MaxQueuedRequests = Annotated[
    int | None,
    typer.Option(
        "--max-queued-requests",
        help="Requests that may wait beyond those that run; more are answered 503.",
    ),
]
QueueTimeout = Annotated[
    float | None,
    typer.Option("--queue-timeout", help="Seconds that a request may wait for its first step."),
]
RequestTimeout = Annotated[
    float | None, typer.Option("--request-timeout", help="Seconds that a request may take in all.")
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--drain-timeout",
        help="Seconds in which running requests may finish after SIGTERM; Ctrl-C ends at once.",
    ),
]
HealthTimeout = Annotated[
    float,
    typer.Option(
        "--health-timeout", help="Seconds of silence after which a node counts as hung in /health."
    ),
]
LogInterval = Annotated[
    float,
    typer.Option("--log-interval", help="Seconds between lines about the traffic; 0: none."),
]
