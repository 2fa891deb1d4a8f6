"""The front end's socket: nothing that came in is left lying."""

import asyncio
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import zmq

from megainfer.errors import NodeDied
from megainfer.frontend.node_socket import At, NodeSocket, new_endpoint
from megainfer.messages.message import encode
from megainfer.messages.requests import Abort, Reset, node_identity, to_node_decoder
from tests.support.engine_talk import run
from tests.support.scripted_server import WAIT_SECONDS


class Node:
    """The other end, without a loop."""

    def __init__(self, endpoint: str, node: int) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, node_identity(node))
        self.socket.setsockopt(zmq.RCVTIMEO, int(1000 * WAIT_SECONDS))
        self.socket.connect(endpoint)

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.term()


@asynccontextmanager
async def both_ends(node: int = 0, max_queued: int = 10) -> AsyncIterator[tuple[NodeSocket, Node]]:
    socket = NodeSocket(new_endpoint(), max_queued)
    socket.bind()
    other = Node(socket._endpoint, node)
    try:
        yield socket, other
    finally:
        other.close()
        socket.close()


def descriptor(socket: NodeSocket) -> int:
    own = socket._socket
    assert own is not None
    return int(own.FD)


def arrives(socket: NodeSocket) -> None:
    """Wait for it without the loop, which then doesn't know of it yet."""
    readable, _, _ = select.select([descriptor(socket)], [], [], WAIT_SECONDS)
    assert readable


def while_it_waits(send: Callable[[NodeSocket, Node], None]) -> None:
    """Something comes in, of which the loop doesn't know yet, and then this is done."""

    async def work() -> None:
        async with both_ends() as (socket, node):
            node.socket.send(b"is here")
            assert (await socket.receive())[0] == At(0, 0)
            for _ in range(20):
                heard = asyncio.create_task(socket.receive())
                await asyncio.sleep(0)  # it finds nothing, and waits
                node.socket.send(b"while")
                arrives(socket)
                send(socket, node)  # takes away what the descriptor would say
                assert (await asyncio.wait_for(heard, WAIT_SECONDS))[0] == At(0, 0)

    run(work())


def test_what_comes_in_while_something_is_sent_is_heard() -> None:
    def send(socket: NodeSocket, node: Node) -> None:
        socket.send(At(0, 0), Reset())
        assert to_node_decoder.decode(node.socket.recv()) == Reset()

    while_it_waits(send)


def test_what_comes_in_while_nothing_can_be_sent_is_heard() -> None:
    def send(socket: NodeSocket, node: Node) -> None:
        with pytest.raises(NodeDied, match="can't be reached"):
            socket.send(At(7, 0), Reset())

    while_it_waits(send)


def test_what_comes_in_while_nobody_waits_is_there_and_keeps_nobody_awake() -> None:
    async def work() -> None:
        async with both_ends(3) as (socket, node):
            woken = 0
            wake = socket._wake

            def counted() -> None:
                nonlocal woken
                woken += 1
                wake()

            asyncio.get_running_loop().add_reader(descriptor(socket), counted)
            node.socket.send(b"early")
            arrives(socket)
            for _ in range(200):
                await asyncio.sleep(0)
            assert 0 < woken < 20
            assert (await asyncio.wait_for(socket.receive(), WAIT_SECONDS))[0] == At(3, 0)

    run(work())


def test_whom_nobody_can_reach_is_said() -> None:
    async def work() -> None:
        socket = NodeSocket(new_endpoint(), max_queued=10)
        with pytest.raises(NodeDied, match="isn't open"):
            socket.send(At(0, 0), Reset())
        socket.bind()
        try:
            with pytest.raises(NodeDied, match="can't be reached"):
                socket.send(At(7, 0), Abort("r"))
        finally:
            socket.close()

    run(work())


def test_messages_in_both_directions_all_come() -> None:
    count = 2000

    async def work() -> None:
        async with both_ends(max_queued=10 * count) as (socket, node):

            def echo() -> None:
                for _ in range(count):
                    node.socket.send(node.socket.recv())

            async def hear() -> None:
                for _ in range(count):
                    await socket.receive()

            node.socket.send(encode(Reset()))
            await socket.receive()
            both = asyncio.gather(asyncio.to_thread(echo), hear())
            for number in range(count):
                socket.send(At(0, 0), Abort(f"{number}"))
                if number % 7 == 0:
                    await asyncio.sleep(0)
            await asyncio.wait_for(both, WAIT_SECONDS)

    run(work())
