"""Whom the doors on a node's host let in."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from megainfer.agent.front_doors import FrontDoors
from megainfer.frontend.node_socket import new_endpoint
from megainfer.messages.hosts import ForFrontEnd
from megainfer.messages.requests import node_identity

SECONDS = 10.0
NOBODY = 65534


def speak_as(endpoint: str, uid: int) -> int:
    """A process of a user that says something in the node's name."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setuid(uid)
        with zmq.Context() as context, context.socket(zmq.DEALER) as node:
            node.setsockopt(zmq.LINGER, 500)
            node.setsockopt(zmq.IDENTITY, node_identity(0, 0))
            node.connect(endpoint)
            node.send(str(uid).encode())
    finally:
        os._exit(0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_not_taken_for_the_node() -> None:
    endpoint = new_endpoint()
    plan: Any = SimpleNamespace(front_endpoint=lambda server, incarnation: endpoint)
    doors = FrontDoors(plan, 0, 0)
    pids = [speak_as(endpoint, NOBODY)]
    doors.open(0, 0)
    os.waitpid(pids[0], 0)  # it has lingered, in vain
    os.waitpid(speak_as(endpoint, 0), 0)
    told: list[ForFrontEnd] = []
    poller = zmq.Poller()
    while not told:
        (descriptor,) = doors.filenos()
        poller.register(descriptor, zmq.POLLIN)
        assert doors.pending or poller.poll(SECONDS * 1000)
        told += doors.taken()
    assert told == [ForFrontEnd(0, 0, b"0")]
    doors.close()
