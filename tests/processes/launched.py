"""What tests of launchers ask of an instance."""

from collections.abc import Callable
from time import monotonic, sleep

import httpx

from tests.support.served import Served
from tests.support.served import answer as served_answer

PROMPT = [5, 6, 7, 8] * 8
TOKENS = 16
GRACE = 60.0
"""Of bounds, on a machine that others use."""
OPTIONS = (
    *("--ffn-gpus", "2", "--micro-batches", "1", "--dtype", "float32"),
    *("--max-model-len", "1024", "--kv-cache-memory", "4MiB"),
)


def answer(served: Served) -> list[int]:
    return served_answer(served, PROMPT, TOKENS)


def hosts_of(served: Served) -> set[str]:
    nodes = httpx.get(f"{served.url}/admin/nodes", timeout=30).json()["nodes"]
    return {node["host"] for node in nodes}


def await_output(served: Served, holds: Callable[[str], object], seconds: float = GRACE) -> None:
    deadline = monotonic() + seconds
    while not holds(served.output):
        assert monotonic() < deadline, served.output
        sleep(0.05)  # lines are read by a thread that tells nobody


def await_health(served: Served) -> None:
    deadline = monotonic() + GRACE
    while httpx.get(f"{served.url}/health", timeout=30).json()["status"] != "ok":
        assert monotonic() < deadline, served.output
        sleep(0.1)  # what /health says, nobody tells unasked
