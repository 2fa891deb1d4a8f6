"""An instance without an API server, in a process of its own: what an offline `LLM` talks to.

The owner starts it with exec, because its own process may have threads and an initialised torch,
from which forking nodes would not be safe. `python -m megainfer.supervise.engine_process` is its
other half: it reads the plan from its standard input.
"""

import logging
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from megainfer.errors import MegaInferError, NodeDied
from megainfer.launch.control import ChildLink, ParentLink, link_pair, parent_link
from megainfer.launch.plan import Plan
from megainfer.launch.plan_codec import decode_plan, encode_plan
from megainfer.messages.from_child import Fatal, LoadProgress, Ready
from megainfer.messages.to_child import Stop
from megainfer.supervise.supervisor import Supervisor

logger = logging.getLogger("megainfer")

STOP_TIMEOUT_SECONDS = 20.0
"""More than the supervisor takes at most to end its nodes, by force if need be."""


class EngineProcess:
    """The owner's view: a link, and a process to end."""

    def __init__(self, plan: Plan) -> None:
        self.link: ChildLink
        self.link, theirs = link_pair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megainfer.supervise.engine_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
        )
        theirs.close()
        self._hand_over(plan)

    def _hand_over(self, plan: Plan) -> None:
        assert self._process.stdin is not None
        # One that ends meanwhile is noticed through the link.
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(encode_plan(plan))

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
        self._owner.send(LoadProgress(stage=text, done=0, total=0))

    def loading(self, name: str, done: int, total: int) -> None:
        self._loaded[name] = (done, total)
        dones, totals = zip(*self._loaded.values(), strict=True)
        self._owner.send(LoadProgress(stage="loading weights", done=sum(dones), total=sum(totals)))

    def ready(self, micro_batches: int, startup: Mapping[str, float]) -> None:
        self._owner.send(Ready())

    def ended(self, error: str | None) -> None:
        if error is not None:
            logger.error(error)
            with suppress(NodeDied):  # the owner itself is gone: nobody to tell
                self._owner.send(Fatal(message=error))


def main(fd: int, encoded: bytes) -> int:
    """The process itself; the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    owner = parent_link(fd)
    try:
        plan = decode_plan(encoded)
    except MegaInferError as error:
        owner.send(Fatal(message=str(error)))
        return 1
    return Supervisor(plan, OwnerObserver(owner), owner=owner).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.stdin.buffer.read()))
