"""The socket to which the attention nodes connect.

A ROUTER; each node connects a DEALER whose identity is `node_identity(node, incarnation)`. It
stands on ZeroMQ and asyncio, and knows messages, but nothing of what they mean.

Every token comes through here. pyzmq's own sockets for asyncio make two futures and two timers a
message, which costs more than the message: this one waits for the descriptor of a plain socket.
"""

import asyncio
import logging
import os
import secrets
from typing import NamedTuple

import msgspec
import zmq

from megainfer.errors import NodeDied, Overloaded, ProtocolError
from megainfer.messages.message import encode
from megainfer.messages.requests import (
    FromNode,
    ToNode,
    from_node_decoder,
    node_identity,
    read_identity,
)

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20
READABLE = int(zmq.POLLIN)  # its own arithmetic takes longer than to receive a message
LINGER_MS = 200  # for the last aborts at close


class At(NamedTuple):
    """An attention node, in one of its incarnations."""

    node: int
    incarnation: int


def new_endpoint() -> str:
    """An address in Linux's abstract namespace: no file, and nothing to clean after a kill."""
    return f"ipc://@megainfer-{secrets.token_hex(12)}"


class NodeSocket:
    """`bind`, then `send` and `receive`, at last `close`. max_queued: messages either way that may
    wait for whoever reads them."""

    def __init__(self, endpoint: str, max_queued: int) -> None:
        self._endpoint = endpoint
        self._max_queued = max_queued
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def bind(self) -> None:
        """Open the endpoint, on the running loop."""
        self._context = zmq.Context()
        self._socket = socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unreachable node is an error, not a loss
        socket.setsockopt(zmq.SNDHWM, self._max_queued)
        socket.setsockopt(zmq.RCVHWM, self._max_queued)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.bind(self._endpoint)
        asyncio.get_running_loop().add_reader(socket.FD, self._wake)

    def close(self) -> None:
        """Close the endpoint; nobody may be in `receive`."""
        if self._socket is not None and self._context is not None:
            asyncio.get_running_loop().remove_reader(self._socket.FD)
            self._socket.close()
            self._context.term()
        self._socket = self._context = None

    def send(self, to: At, message: ToNode) -> None:
        """Hand a message to ZeroMQ, never waiting. Raises NodeDied or Overloaded."""
        if self._socket is None:
            raise NodeDied("the engine client isn't open; call start() first")
        frames = [node_identity(*to), encode(message)]
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            raise Overloaded("it takes no messages; its queue is full") from None
        except zmq.ZMQError as error:
            raise NodeDied(f"it can't be reached: {error}") from error
        finally:
            # To send, or to fail to, is to hear of what has come in, of which the descriptor then
            # says nothing more.
            if self._waiter is not None and self._events() & READABLE:
                self._wake()

    async def receive(self) -> tuple[At, FromNode | ProtocolError]:
        """The next message of a node, or what is wrong with it; strangers are passed over."""
        assert self._socket is not None, "receive() before bind()"
        while True:
            while not self._events() & READABLE:  # for `recv` to raise takes several times as long
                await self._readable()
            frames = self._socket.recv_multipart(zmq.DONTWAIT)
            identity = read_identity(frames[0])
            if identity is not None:
                return At(*identity), _decoded(frames)
            log.warning("dropped a message from an unknown peer %r", frames[0][:32])

    async def _readable(self) -> None:
        """Something may have come in since nothing was there."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is None:
            # Nobody waits, and whoever will looks first: until then the descriptor may keep quiet.
            self._events()
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def _events(self) -> int:
        assert self._socket is not None, "it is closed"
        return int(self._socket.getsockopt(zmq.EVENTS))


def _decoded(frames: list[bytes]) -> FromNode | ProtocolError:
    if len(frames) != 2:
        return ProtocolError(f"sent {len(frames)} frames where 2 were expected")
    try:
        return from_node_decoder.decode(frames[1])
    except msgspec.MsgspecError as error:
        return ProtocolError(f"sent a message that can't be read: {error}")
