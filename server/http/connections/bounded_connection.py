"""A client's connection, which ends where it would only cost.

uvicorn bounds the time between two requests. What is added here: how long headers may take, what a
head must look like, and how long a client may leave its answer unread.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.http.connections.connection_limits import READ_BYTES, ConnectionLimits
from server.http.connections.strict_http import StrictConnection
from server.http.errors import SERVER_ERROR, ErrorReport

log = logging.getLogger(__name__)


class BoundedConnection(H11Protocol):
    """One connection. answers: instead of the application, where it is one too many. was_made: it
    has begun; at_end is called when it has ended, once."""

    def __init__(
        self, *args: Any, limits: ConnectionLimits, answers: ASGIApp | None = None, **named: Any
    ) -> None:
        super().__init__(*args, **named)
        self.conn = StrictConnection()
        if answers is not None:
            self.app = answers
        self.was_made = False
        self.at_end: Callable[[], object] = lambda: None
        self._limits = limits
        self._head = _Deadline(self.loop)
        self._reading = _Deadline(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.was_made = True
        _send_at_once(transport)
        # Writers wait, and the reader is timed, as soon as anything is left unsent. At a limit of 0
        # a transport over TLS would hold even that against them that nothing is left.
        transport.set_write_buffer_limits(high=1, low=0)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the headers are complete
            self._head.stop()
        elif before is None or before.response_complete:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """What was sent isn't HTTP. Whoever was answering what came before it is told to stop:
        uvicorn would let it answer as well, and fail."""
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering:
            cycle.disconnected = True
            cycle.message_event.set()
        # The text that uvicorn answers with can't stand in either.
        if answering and (cycle.response_started or cycle.scope["method"] == "HEAD"):
            self.transport.close()
        else:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        """Some of an answer couldn't be sent at once."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """All was sent."""
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, whoever brought it about."""
        super().connection_lost(exc)
        self._head.stop()
        self._reading.stop()
        self.at_end()

    def _expect_head(self) -> None:
        if not self._head.runs and not self.transport.is_closing():
            self._head.start(self._limits.head_seconds, self.transport.abort)

    def _expect_reading(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reading.start(self._limits.read_seconds, lambda: self._check_reading(left))

    def _check_reading(self, before: int) -> None:
        if self.transport.get_write_buffer_size() <= before - READ_BYTES:
            self._expect_reading()
            return
        log.info("a client left its answer unread for %g s", self._limits.read_seconds)
        self.transport.abort()


def _send_at_once(transport: asyncio.BaseTransport) -> None:
    # asyncio asks for it only where the listening socket was made with IPPROTO_TCP by name. Else
    # headers are sent, and what follows waits for their acknowledgement, up to 40 ms.
    connection = transport.get_extra_info("socket")
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Deadline:
    """A time after which something is done, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        return self._timer is not None

    def start(self, seconds: float, action: Callable[[], object]) -> None:
        self._timer = self._loop.call_later(seconds, action)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TooManyConnections:
    """ASGI: what a connection beyond the limit gets, whatever it asks for, as its only answer."""

    def __init__(self, limits: ConnectionLimits) -> None:
        message = (
            f"{limits.connections} connections are open, or {limits.of_address} from your address, "
            "the most that are served at a time; close some, or try again later"
        )
        self._report = ErrorReport(503, message, SERVER_ERROR, code="overloaded")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self._report.response(scope["path"])
        response.headers["Connection"] = "close"
        await response(scope, receive, send)
