"""Nodes that were lost, and what it took to go on without them."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from megainfer.frontend.engine_client import EngineClient
from server.operate.metrics.families import counter, gauge, histogram


def instance_families(model: str, engine: EngineClient) -> Iterator[Metric]:
    """What any API server can tell of the whole instance."""
    attendance = engine.attendance
    text = "The number of the membership: it grows when a node leaves, comes back or is added."
    yield gauge("epoch", text, ("model_name",), [((model,), float(attendance.epoch))])
    yield counter(
        "node_restarts",
        "Processes of a node that ended and were replaced.",
        ("model_name", "role", "node"),
        [((model, str(role), str(n)), float(count)) for (role, n), count in attendance.restarts()],
    )


def recovery_families(model: str, engine: EngineClient) -> Iterator[Metric]:
    """What an API server knows of its own requests."""
    recovery, labels = engine.recovery, ("model_name", "engine")
    nodes = sorted({*range(engine.num_nodes), *recovery.replayed})
    yield counter(
        "requests_replayed",
        "Requests that went on at this engine after the one that had them had died.",
        labels,
        [((model, str(node)), float(recovery.replayed[node])) for node in nodes],
    )
    yield counter(
        "tokens_recomputed",
        "Tokens, of prompts and answers, that such requests had had computed before.",
        labels,
        [((model, str(node)), float(recovery.recomputed[node])) for node in nodes],
    )
    yield histogram(
        "recovery_seconds",
        "From the loss of a node until requests were served without it or by it again.",
        ("model_name", "cause"),
        [((model, str(role)), seconds) for role, seconds in recovery.seconds.items()],
    )
    text = "1 while requests that are taken are computed, 0 while they wait or are refused."
    serving = float(engine.condition.serves)
    yield gauge("serving", text, ("model_name",), [((model,), serving)])
