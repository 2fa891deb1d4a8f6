"""The socket to which the attention nodes connect.

A ROUTER; each node connects a DEALER whose identity is `node_identity(node, incarnation)`. It
stands on ZeroMQ and asyncio, and knows messages, but nothing of what they mean.
"""

import asyncio
import logging
import os
import secrets
from typing import NamedTuple, cast

import msgspec
import zmq
import zmq.asyncio

from megainfer.errors import NodeDied, Overloaded, ProtocolError
from megainfer.messages import (
    FromNode,
    ToNode,
    encode,
    from_node_decoder,
    node_identity,
    read_identity,
)

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20
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
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def bind(self) -> None:
        """Open the endpoint."""
        self._context = zmq.asyncio.Context()
        self._socket = socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unreachable node is an error, not a loss
        socket.setsockopt(zmq.SNDHWM, self._max_queued)
        socket.setsockopt(zmq.RCVHWM, self._max_queued)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.bind(self._endpoint)

    def close(self) -> None:
        """Close the endpoint; nobody may be in `receive`."""
        if self._socket is not None and self._context is not None:
            self._socket.close()
            self._context.term()
        self._socket = self._context = None

    def send(self, to: At, message: ToNode) -> None:
        """Hand a message to ZeroMQ, never waiting. Raises NodeDied or Overloaded."""
        if self._socket is None:
            raise NodeDied("the engine client isn't open; call start() first")
        frames = [node_identity(*to), encode(message)]
        sent = self._socket.send_multipart(frames, flags=zmq.DONTWAIT)
        error = cast("asyncio.Future[None]", sent).exception()  # with DONTWAIT it is done by now
        if isinstance(error, zmq.Again):
            raise Overloaded("it takes no messages; its queue is full")
        if error is not None:
            raise NodeDied(f"it can't be reached: {error}")

    async def receive(self) -> tuple[At, FromNode | ProtocolError]:
        """The next message of a node, or what is wrong with it; strangers are passed over."""
        assert self._socket is not None, "receive() before bind()"
        while True:
            frames = await self._socket.recv_multipart()
            identity = read_identity(frames[0])
            if identity is not None:
                return At(*identity), _decoded(frames)
            log.warning("dropped a message from an unknown peer %r", frames[0][:32])


def _decoded(frames: list[bytes]) -> FromNode | ProtocolError:
    if len(frames) != 2:
        return ProtocolError(f"sent {len(frames)} frames where 2 were expected")
    try:
        return from_node_decoder.decode(frames[1])
    except msgspec.MsgspecError as error:
        return ProtocolError(f"sent a message that can't be read: {error}")
