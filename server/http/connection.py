"""Working for a client only as long as it is there, and streaming events to it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; it is for a log of accesses
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx's
}
COMMENT_SECONDS = 5.0
"""After at least so long without an event, and at most twice that, a comment is sent: common
proxies give up after 30 or 60 s."""
COMMENT = {"type": "http.response.body", "body": b": still working\n\n", "more_body": True}
log = logging.getLogger(__name__)


current_receive: ContextVar[Receive | None] = ContextVar("current_receive", default=None)
"""What tells that the client hangs up, of the request in whose task this is asked."""


class ClientGone(Exception):
    """The client hung up; what was being done for it has been cancelled."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled at once when the client hangs up.

    The request's body must have been read. Raises ClientGone, and what `work` raises.
    """
    working = asyncio.current_task()
    assert working is not None, "a coroutine runs in a task"
    before, gone = working.cancelling(), False

    async def watch() -> None:
        nonlocal gone
        await _hang_up(receive)
        gone = True
        working.cancel()

    watching = asyncio.create_task(watch(), name="watch-connection")
    try:
        return await work
    except asyncio.CancelledError:
        # As asyncio.timeout does it: whoever else has cancelled this task goes before.
        if gone and working.uncancel() <= before:
            raise ClientGone from None
        raise
    finally:
        watching.cancel()


async def while_client_stays(work: Coroutine[Any, Any, T]) -> T:
    """`while_connected`, of the request that is being answered, if there is one."""
    receive = current_receive.get()
    return await (work if receive is None else while_connected(receive, work))


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events. `source` is what the chunks come from; it is closed in any case.

    Each chunk is made of whole events. While none comes, comments do, so that nothing on the way
    takes the connection for dead. silent: nothing has come yet, so that one is sent at once.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        source: AbstractContextManager[Any],
        silent: bool = False,
    ) -> None:
        super().__init__(chunks, headers=STREAM_HEADERS)
        self._chunks = chunks
        self._source = source
        self._silent = silent
        self._commenting: asyncio.Task[None] | None = None  # a short stream needs none

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._source:
            try:
                await while_connected(receive, self._send_all(send))
            except ClientGone:
                log.debug("the client of a stream hung up")

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if self._silent:
            await send(COMMENT)
        loop = asyncio.get_running_loop()
        begins = loop.call_later(COMMENT_SECONDS, self._begin_comments, send)
        try:
            async for chunk in self._chunks:
                self._silent = False
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                # Where more chunks are there already, none of this waits: let the event loop tell
                # of a connection that this write found lost before the next one.
                await asyncio.sleep(0)
        finally:
            begins.cancel()
            if self._commenting is not None:
                self._commenting.cancel()
                await asyncio.gather(self._commenting, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _begin_comments(self, send: Send) -> None:
        self._commenting = asyncio.create_task(self._comment(send), name="stream-comments")

    async def _comment(self, send: Send) -> None:
        while True:
            if self._silent:
                await send(COMMENT)
            self._silent = True
            await asyncio.sleep(COMMENT_SECONDS)
