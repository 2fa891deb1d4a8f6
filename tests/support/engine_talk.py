"""Talking to an engine client and to the nodes behind it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import zmq
import zmq.asyncio

from megainfer.frontend.token_stream import TokenStream
from megainfer.messages.requests import TokenEvent, node_identity
from tests.support.scripted_server import WAIT_SECONDS, MockNode


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 2 * WAIT_SECONDS))


async def collect(stream: TokenStream) -> list[TokenEvent]:
    with stream:
        return [event async for event in stream]


async def hear(node: MockNode, kind: type[Any]) -> Any:
    return await asyncio.to_thread(node.expect, kind)


def dealer(context: zmq.asyncio.Context, endpoint: str, node: int) -> zmq.asyncio.Socket:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, node_identity(node))
    socket.connect(endpoint)
    return socket
