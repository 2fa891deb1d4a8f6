"""As much of Ray as `megainfer.launchers.on_ray` asks of it, in one process: actors are threads.

FAKE_RAY_NODES says how many nodes there are, each at a loopback address; without it there is no
cluster. It stands in where Ray isn't installed; tests/processes/test_ray.py asks the real one.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any

from ray import util
from ray.exceptions import GetTimeoutError

here = threading.local()
"""`address`: of the node whose thread this is."""
IMPOSSIBLE = object()


def init(address: str, **_: object) -> None:
    if "FAKE_RAY_NODES" not in os.environ:
        raise ConnectionError(f"Could not find any running Ray instance.\n{address}")


def nodes() -> list[dict[str, Any]]:
    count = int(os.environ["FAKE_RAY_NODES"])
    resources = {"CPU": 1.0}
    return [
        {"Alive": True, "NodeManagerAddress": f"127.0.0.{node + 1}", "Resources": resources}
        for node in range(count)
    ]


def remote(kind: type) -> "_Remote":
    return _Remote(kind)


class _Remote:
    def __init__(self, kind: type) -> None:
        self._kind = kind

    def options(self, scheduling_strategy: Any, **options: object) -> "_Remote":
        assert options["max_restarts"] == options["max_task_retries"] == -1
        self._bundle = scheduling_strategy.bundle
        return self

    def remote(self) -> "_Actor":
        return _Actor(self._kind(), self._bundle)


class _Actor:
    def __init__(self, instance: Any, bundle: int) -> None:
        self._instance = instance
        self._address = nodes()[bundle]["NodeManagerAddress"]
        self.run = self

    def remote(self, *arguments: object) -> "Future[Any]":
        end: Future[Any] = Future()
        main: Callable[..., Any] = self._instance.run

        def live() -> None:
            here.address = self._address
            end.set_result(main(*arguments))

        threading.Thread(target=live, daemon=True).start()
        return end


def get(reference: Any, timeout: float | None = None) -> Any:
    if reference is IMPOSSIBLE:
        raise GetTimeoutError
    return reference.result(timeout)


def wait(
    references: Sequence["Future[Any]"], num_returns: int, timeout: float
) -> tuple[list["Future[Any]"], list["Future[Any]"]]:
    done, others = wait_for(references, timeout, "FIRST_COMPLETED")
    return [*done][:num_returns], [*others]


def shutdown() -> None:
    """Threads are daemons."""


__all__ = ["util"]
