"""One host of an instance as an actor of Ray: it has `megainfer agent` run as a process of its own,
and ends as that does."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from time import sleep

import ray

from megainfer.hosts.token import VARIABLE

RESTART_SECONDS = 1.0
"""Before Ray starts an actor again whose agent was killed."""
LAST_LINES = 3
THREADS = "OMP_NUM_THREADS"
"""Ray sets it for actors by their CPUs; nodes have the cores that the plan gives them."""


class HostActor:
    def run(self, arguments: Sequence[str], token: str | None) -> tuple[int, str]:
        """The agent's exit status and what it said last. One that is killed takes its actor along,
        and Ray starts another. token: None where the arguments name a file."""
        address = ray.util.get_node_ip_address()
        environment = {name: text for name, text in os.environ.items() if name != THREADS}
        if token is not None:
            environment[VARIABLE] = token
        parent = str(os.getpid())
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "megainfer.launchers.with_parent", parent, "agent"),
                *(*arguments, "--host", address),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as agent:
            last: deque[str] = deque(maxlen=LAST_LINES)
            for line in agent.stdout or ():
                print(line, end="", flush=True)  # into Ray's logs
                last.append(line.strip())
            status = agent.wait()
        if status < 0:
            print(f"the agent was killed by signal {-status}", flush=True)
            sleep(RESTART_SECONDS)
            os._exit(1)
        return status, " ".join(last)
