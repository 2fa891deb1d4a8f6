"""An instance without an API server, in a process of its own: what an offline `LLM` talks to.

The owner starts it with exec, because its own process may have threads and an initialised torch,
from which forking nodes would not be safe. `python -m megainfer.launch.engine_process` is its other
half.
"""

import logging
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from megainfer.config import EngineConfig
from megainfer.errors import MegaInferError, NodeDied
from megainfer.launch.control import ChildLink, ParentLink, link_pair, parent_link
from megainfer.launch.plan import make_plan
from megainfer.messages import Fatal, Progress, Ready, Stop
from megainfer.supervise.supervisor import Supervisor

logger = logging.getLogger("megainfer")

STOP_TIMEOUT_SECONDS = 20.0
"""More than the supervisor takes at most to end its nodes, by force if need be."""


@dataclass(frozen=True)
class EngineOrder:
    """What the process is to run; goes to it as JSON on its command line."""

    config: EngineConfig
    folder: str
    token: str


class EngineProcess:
    """The owner's view: a link, and a process to end."""

    def __init__(self, order: EngineOrder) -> None:
        self.link: ChildLink
        self.link, theirs = link_pair()
        argv = [sys.executable, "-m", "megainfer.supervise.engine_process", str(theirs.fileno())]
        self._process = subprocess.Popen(
            [*argv, msgspec.json.encode(order).decode()],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """End it and all its nodes, in bounded time."""
        try:
            self.link.send(Stop())
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except NodeDied:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its nodes notice by themselves
            self._process.wait()
        finally:
            self.link.close()


class OwnerObserver:
    """Tells the owner how the start goes."""

    def __init__(self, owner: ParentLink) -> None:
        self._owner = owner
        self._loaded: dict[str, tuple[int, int]] = {}

    def stage(self, text: str) -> None:
        self._owner.send(Progress(stage=text, done=0, total=0))

    def loading(self, name: str, done: int, total: int) -> None:
        self._loaded[name] = (done, total)
        dones, totals = zip(*self._loaded.values(), strict=True)
        self._owner.send(Progress(stage="loading weights", done=sum(dones), total=sum(totals)))

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        self._owner.send(Ready())

    def ended(self, error: str | None) -> None:
        if error is not None:
            logger.error(error)
            with suppress(NodeDied):  # the owner itself is gone: nobody to tell
                self._owner.send(Fatal(message=error))


def main(fd: int, order_json: str) -> int:
    """The process itself; the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    owner = parent_link(fd)
    order = msgspec.json.decode(order_json, type=EngineOrder)
    try:
        plan = make_plan(order.config, Path(order.folder), order.token)
    except MegaInferError as error:
        owner.send(Fatal(message=str(error)))
        return 1
    return Supervisor(plan, OwnerObserver(owner), owner=owner).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
