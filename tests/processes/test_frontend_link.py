"""An attention node's connection to the front end: to whom it speaks, and when that is gone."""

import os
import time

import pytest
import zmq

from megainfer.attention_node.link import FrontEndLink
from megainfer.errors import NodeDied, ProtocolError
from megainfer.frontend.node_socket import new_endpoint
from megainfer.messages.message import encode
from megainfer.messages.requests import NodeReady, node_identity
from tests.support.m2n_cluster import fork, join_all

SOON = 10.0
MESSAGE = NodeReady(node=3, max_model_len=7, max_num_seqs=1)


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def listening(context: zmq.Context, endpoint: str) -> zmq.Socket:
    router = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    return router


def test_it_speaks_to_the_front_end_that_it_met(context):
    endpoint = new_endpoint()
    router = listening(context, endpoint)
    link = FrontEndLink(endpoint, 3)
    link.send(MESSAGE)
    assert router.poll(1e3 * SOON)
    assert router.recv_multipart() == [node_identity(3), encode(MESSAGE)]
    link.close()


def test_who_takes_the_name_afterwards_hears_nothing(context):
    endpoint = new_endpoint()
    first = listening(context, endpoint)
    link = FrontEndLink(endpoint, 3)
    monitor = context.socket(zmq.PAIR)
    first.monitor("inproc://first", zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
    monitor.connect("inproc://first")
    first.close(linger=0)
    assert monitor.poll(1e3 * SOON)
    second = listening(context, endpoint)
    # Of its own user, so that nothing but the name is in its way.
    deadline = time.monotonic() + SOON
    while not link._events.poll(10):
        assert time.monotonic() < deadline, "the link doesn't notice that the front end is gone"
    link.send(MESSAGE)
    link.close()
    other = FrontEndLink(endpoint, 4)  # who comes later is heard first
    other.send(MESSAGE)
    assert second.poll(1e3 * SOON)
    assert second.recv_multipart()[0] == node_identity(4)
    other.close()


def test_nobody_listens():
    with pytest.raises(NodeDied, match="no front end listens"):
        FrontEndLink(new_endpoint(), 0, timeout=0.05)


def speak(endpoint: str, looking: int) -> None:
    os.write(looking, b"x")
    link = FrontEndLink(endpoint, 0)
    link.send(MESSAGE)
    link.close()


def test_a_front_end_that_comes_later(context):
    endpoint = new_endpoint()
    reader, writer = os.pipe()
    node = fork(speak, endpoint, writer)
    assert os.read(reader, 1) == b"x"
    router = listening(context, endpoint)
    assert router.poll(1e3 * SOON)
    assert router.recv_multipart()[0] == node_identity(0)
    join_all([node])


def squat(endpoint: str, ready: int) -> None:
    os.setuid(65534)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        os.write(ready, b"x")
        assert not router.poll(1e3 * SOON), "it heard something"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_front_end_is_told_nothing():
    endpoint = new_endpoint()
    reader, writer = os.pipe()
    squatter = fork(squat, endpoint, writer)
    assert os.read(reader, 1) == b"x"
    with pytest.raises(ProtocolError, match="the front end runs as user 65534, this is 0"):
        FrontEndLink(endpoint, 0)
    assert squatter.is_alive()
    squatter.kill()
    squatter.join(SOON)
