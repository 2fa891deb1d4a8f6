"""Spans of all nodes over an interval, through the supervisor."""

import asyncio
import itertools
from collections.abc import Callable

from megainfer.errors import NodeDied
from megainfer.instruments.stage_clock import Span
from megainfer.launch.span_pieces import SpanPieces
from megainfer.messages.from_child import Spans
from megainfer.messages.to_child import GetSpans, KeepSpans
from server.http.errors import ApiError, ErrorReport

KEPT_SPANS = 100_000
"""Of each node in one trace; of a longer interval its end."""
GATHER_SECONDS = 20.0
GLANCE_SECONDS = 2.0
"""How long nodes may take to give the few spans that they keep for who watches."""

Ask = Callable[[KeepSpans | GetSpans], object]


class Tracer:
    """One trace at a time, and between traces spans for who watches.

    ask: sends a message to all nodes. processes: how many answer it. first_ticket: of this API
    server's, which others hear the answers to as well.
    """

    def __init__(self, ask: Ask, processes: Callable[[], int], first_ticket: int = 0) -> None:
        self._ask = ask
        self._processes = processes
        self._tickets = itertools.count(first_ticket)
        self._pieces: dict[int, SpanPieces] = {}
        self._busy = False
        self._watched = 0

    def hear(self, spans: Spans) -> None:
        """Take in what a node says; late words of a trace that was given up are dropped."""
        pieces = self._pieces.get(spans.ticket)
        if pieces is not None and not pieces.whole.done():
            pieces.hear(spans)

    async def record(self, seconds: float) -> dict[str, list[Span]]:
        """Spans by the node's name. Raises ApiError (409) while another trace is being taken,
        NodeDied when a node doesn't give its own."""
        if self._busy:
            message = "another trace is being taken; try again when it is done"
            raise ApiError(ErrorReport(409, message, code="trace_in_progress"))
        self._busy = True
        try:
            self._ask(KeepSpans(KEPT_SPANS))
            await asyncio.sleep(seconds)
            return await self._gather(GATHER_SECONDS)
        finally:
            self._busy = False
            self.watch(self._watched)

    def watch(self, count: int) -> None:
        """Have each node keep so many of its latest spans for `glance`, 0: none."""
        self._watched = count
        if not self._busy:
            self._ask(KeepSpans(count))

    async def glance(self) -> dict[str, list[Span]] | None:
        """Spans by the node's name since the last glance; None while a trace is being taken.

        Raises NodeDied when a node doesn't give its own.
        """
        return None if self._busy else await self._gather(GLANCE_SECONDS)

    async def _gather(self, seconds: float) -> dict[str, list[Span]]:
        processes = self._processes()
        if not processes:
            return {}
        ticket = next(self._tickets)
        whole = asyncio.get_running_loop().create_future()
        pieces = self._pieces[ticket] = SpanPieces(processes, whole)
        try:
            self._ask(GetSpans(ticket))
            async with asyncio.timeout(seconds):
                await whole
        except TimeoutError:
            raise NodeDied(
                f"{pieces.unfinished} of {processes} processes did not give their spans "
                f"within {seconds:g} s"
            ) from None
        finally:
            del self._pieces[ticket]
        return pieces.spans
