"""A cluster of Ray on this machine, in a process of its own: Ray has threads, and tests fork.

    python -m tests.support.ray_cluster COUNT

has a node at each of so many loopback addresses, prints `cluster ADDRESS` when they are up, removes
the node whose address a line of its input names, and ends with its input.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.served import session_members

UP_SECONDS = 240.0
END_SECONDS = 60.0


class RayCluster:
    """The process, from outside; `address` as `ray.init` takes it."""

    def __init__(self, nodes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address = ""
        self._up = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self) -> None:
        assert self._up.wait(UP_SECONDS), "the cluster of Ray isn't up"
        assert self.address, f"the cluster of Ray ended with status {self._process.wait()}"

    def remove(self, node: str) -> None:
        """node: its address."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{node}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """And whatever is left of it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        finally:
            for pid, _ in session_members(self._process.pid):
                os.kill(pid, signal.SIGKILL)

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if line.startswith("cluster "):
                self.address = line.split()[1]
                self._up.set()
        self._up.set()


@contextmanager
def ray_cluster(nodes: int) -> Iterator[RayCluster]:
    cluster = RayCluster(nodes)
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.end()


def main(count: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    nodes = {}
    for number in range(2, count + 2):  # the first is to Ray what the machine's own is
        address = f"127.0.0.{number}"
        nodes[address] = cluster.add_node(
            num_cpus=1, node_ip_address=address, include_dashboard=False
        )
    cluster.wait_for_nodes(UP_SECONDS)
    print("cluster", cluster.address, flush=True)
    for line in sys.stdin:
        cluster.remove_node(nodes.pop(line.strip()), allow_graceful=False)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
