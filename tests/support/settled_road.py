"""The road `dist` between ports of one process, where a message has arrived when the call that
sends it returns: so tests of the rules find what they find over shared memory."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from threading import Condition
from typing import Any

import pytest

from megainfer.m2n.dist.inbox import Arrivals
from megainfer.m2n.dist.link import Link
from megainfer.m2n.geometry import Geometry
from tests.support.m2n_cluster import SECONDS, Cluster, shm_cluster

SENDS = ("dispatch", "rest", "reply", "reply_error")


class Traffic:
    """Messages of all links of this process: how many were sent, and how many have arrived."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._sent = self._arrived = 0

    def counting_sent(self, send: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(send)
        def count(link: Link, *args: Any) -> None:
            self._sent += link._pair is not None
            send(link, *args)

        return count

    def counting_arrived(self, put: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(put)
        def count(*args: Any) -> None:
            put(*args)
            with self._changed:
                self._arrived += 1
                self._changed.notify_all()

        return count

    def settled(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, and then wait for what it has sent."""

        @functools.wraps(call)
        def settle(*args: Any) -> Any:
            result = call(*args)
            with self._changed:
                assert self._changed.wait_for(lambda: self._arrived >= self._sent, SECONDS)
            return result

        return settle


@contextlib.contextmanager
def settled_cluster(geometry: Geometry) -> Iterator[Cluster]:
    traffic = Traffic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "send", traffic.counting_sent(Link.send))
        patch.setattr(Arrivals, "put", traffic.counting_arrived(Arrivals.put))
        with shm_cluster(geometry, kind="dist") as cluster:
            for port in (*cluster.attention, *cluster.experts):
                for name in SENDS:
                    if hasattr(port, name):
                        setattr(port, name, traffic.settled(getattr(port, name)))
            yield cluster
