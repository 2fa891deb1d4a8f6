"""An instance's processes and the client of it, for a program that isn't a server."""

import asyncio
import itertools
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from megainfer.console.loading_bar import LoadingBar
from megainfer.errors import ConfigError, MegaInferError, NodeDied, RequestError
from megainfer.frontend.engine_client import EngineClient
from megainfer.instruments.stage_clock import Span
from megainfer.launch.new_weights import CopiedWeights
from megainfer.launch.plan import Plan
from megainfer.launch.span_pieces import SpanPieces
from megainfer.messages.from_child import Fatal, LoadProgress, Ready, Spans, Stats, UpdateWeights
from megainfer.messages.pausing import PauseMode, PauseSet, SetPause
from megainfer.messages.to_child import (
    Enter,
    GetSpans,
    GetStats,
    NodeDown,
    NodeGone,
    WeightsUpdated,
)
from megainfer.supervise.engine_process import EngineProcess
from megainfer.supervise.pausing import PAUSE_SECONDS
from megainfer.supervise.weight_updates import UPDATE_SECONDS
from megainfer.topology import FOLDERS_OWN

CONNECT_TIMEOUT_SECONDS = 30.0
STATS_TIMEOUT_SECONDS = 10.0
CHANGE_TIMEOUT_SECONDS = max(UPDATE_SECONDS, PAUSE_SECONDS) + 60.0
"""More than the supervisor takes at most to answer."""
SHUT_DOWN = "this LLM was shut down; make a new one"

Result = TypeVar("Result")


class LocalEngine:
    """Starts a plan's processes, and talks to them on an event loop with a thread of its own.

    client: on `loop` only. Raises NodeDied when they end while they start; then nothing is left.
    """

    def __init__(
        self, plan: Plan, max_outstanding: int, recovery_seconds: float, loading: LoadingBar
    ) -> None:
        self._plan = plan
        self._loading = loading
        self._tickets = itertools.count()
        self._stats: dict[int, asyncio.Future[Stats]] = {}
        self._spans: dict[int, SpanPieces] = {}
        self._changes: dict[int, asyncio.Future[WeightsUpdated | PauseSet]] = {}
        self.paused = False
        self.weights = FOLDERS_OWN  # as the latest membership has them
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._closed = False
        # Nodes are told to connect, so there must be somebody.
        self.call(self._bind(max_outstanding, recovery_seconds))
        self.process = EngineProcess(plan)
        try:
            with loading.live:
                self.call(self._start())
        except BaseException:
            self.shutdown(self.client.close())
            raise

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run on the loop's thread; an interrupt here cancels it there, which aborts requests.
        Raises NodeDied after `shutdown`."""
        future = self.begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """The same, not waited for. Raises NodeDied after `shutdown`."""
        if self.loop.is_closed():
            work.close()
            raise NodeDied(SHUT_DOWN)
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stats(self) -> Stats:
        """Every node's counters. Raises NodeDied."""
        return self.call(self._fetch_stats())

    def spans(self) -> dict[str, list[Span]]:
        """Every node's spans since the last call. Raises NodeDied."""
        return self.call(self._fetch_spans())

    def update_weights(self, weights: CopiedWeights, version: str | None) -> str:
        """Have all nodes compute with these; their name. Raises ConfigError saying why none does,
        NodeDied."""
        wish = UpdateWeights(next(self._tickets), version, weights.files, weights.quantization)
        updated = self.call(self._change(wish))
        assert isinstance(updated, WeightsUpdated)
        if updated.error is not None:
            raise ConfigError(f"weights {updated.version!r} serve on: {updated.error}")
        return updated.version

    def set_pause(self, mode: PauseMode | None, clear_cache: bool) -> None:
        """Have generation stand still, or go on. Raises RequestError, NodeDied."""
        told = self.call(self._change(SetPause(next(self._tickets), mode, clear_cache)))
        if told.error is not None:
            raise RequestError(told.error)

    def shutdown(self, last: Coroutine[Any, Any, None]) -> None:
        """End all processes, then do this on the loop, and end it; can be called twice."""
        if self._closed:
            last.close()
            return
        self._closed = True
        self.loop.call_soon_threadsafe(self.loop.remove_reader, self.process.link.fileno())
        self.process.stop()
        # Nobody answers any more; who waits is in another thread, and would do so for ever.
        self.loop.call_soon_threadsafe(self._fail, NodeDied(SHUT_DOWN))
        self.call(last)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    # --- on the loop's thread -------------------------------------------------------------------

    async def _bind(self, max_outstanding: int, recovery_seconds: float) -> None:
        self._ready: asyncio.Future[None] = self.loop.create_future()
        self.client = EngineClient(
            self._plan.front_endpoint(),
            self._plan.num_attention,
            self._plan.spec.vocab_size,
            max_outstanding=max_outstanding,
            recovery_seconds=recovery_seconds,
            report=self._report,
            routing_bytes=self._plan.routing_bytes,
        )
        self.client.bind()

    async def _start(self) -> None:
        self.loop.add_reader(self.process.link.fileno(), self._hear)
        await self._ready
        await self.client.start(CONNECT_TIMEOUT_SECONDS)

    def _report(self, down: NodeDown) -> None:
        with suppress(NodeDied):  # `_hear` notices that too
            self.process.link.send(down)

    def _hear(self) -> None:
        try:
            while (message := self.process.link.receive(timeout=0)) is not None:
                match message:
                    case Ready():
                        self._ready.set_result(None)
                    case Stats():
                        self._hear_stats(message)
                    case Spans():
                        self._hear_spans(message)
                    case NodeDown():
                        self.client.lose(message)
                    case NodeGone():
                        self.client.forget(message)
                    case Enter():
                        self.weights = message.membership.weights
                        self.client.enter(message.membership)
                    case PauseSet(ticket=None):
                        self.paused = message.paused
                    case WeightsUpdated() | PauseSet():
                        self._hear_change(message)
                    case LoadProgress():
                        self._loading.hear(message)
                    case Fatal(message=text):
                        self._fail(NodeDied(text))
                    case _:
                        pass
        except NodeDied:
            self.loop.remove_reader(self.process.link.fileno())
            self._fail(NodeDied("the engine's process has ended"))

    def _hear_stats(self, stats: Stats) -> None:
        answer = None if stats.ticket is None else self._stats.pop(stats.ticket, None)
        if answer is not None and not answer.done():  # else nobody waits for it any more
            answer.set_result(stats)

    def _hear_spans(self, spans: Spans) -> None:
        pieces = self._spans.get(spans.ticket)
        if pieces is not None and not pieces.whole.done():
            pieces.hear(spans)

    def _hear_change(self, told: WeightsUpdated | PauseSet) -> None:
        answer = None if told.ticket is None else self._changes.get(told.ticket)
        if answer is not None and not answer.done():
            answer.set_result(told)

    def _fail(self, error: MegaInferError) -> None:
        self.client.fail(str(error))
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._stats.values()]
        waiting += self._changes.values()
        waiting += [pieces.whole for pieces in self._spans.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(error)

    async def _change(self, wish: UpdateWeights | SetPause) -> WeightsUpdated | PauseSet:
        answer: asyncio.Future[WeightsUpdated | PauseSet] = self.loop.create_future()
        self._changes[wish.ticket] = answer
        try:
            self.process.link.send(wish)
            async with asyncio.timeout(CHANGE_TIMEOUT_SECONDS):
                return await answer
        except TimeoutError:
            raise NodeDied(
                f"the engine did not say within {CHANGE_TIMEOUT_SECONDS:g} s what came of {wish}"
            ) from None
        finally:
            del self._changes[wish.ticket]

    async def _fetch_stats(self) -> Stats:
        ticket = next(self._tickets)
        answer: asyncio.Future[Stats] = self.loop.create_future()
        self._stats[ticket] = answer
        try:
            self.process.link.send(GetStats(ticket=ticket))
            async with asyncio.timeout(STATS_TIMEOUT_SECONDS):
                return await answer
        except TimeoutError:
            raise NodeDied(
                f"a node did not give its counters within {STATS_TIMEOUT_SECONDS:g} s"
            ) from None
        finally:
            self._stats.pop(ticket, None)

    async def _fetch_spans(self) -> dict[str, list[Span]]:
        ticket = next(self._tickets)
        processes = 1 if self._plan.config.colocated else len(self._plan.cores)
        pieces = self._spans[ticket] = SpanPieces(processes, self.loop.create_future())
        try:
            self.process.link.send(GetSpans(ticket=ticket))
            async with asyncio.timeout(STATS_TIMEOUT_SECONDS):
                await pieces.whole
                return pieces.spans
        except TimeoutError:
            raise NodeDied(
                f"a node did not give its spans within {STATS_TIMEOUT_SECONDS:g} s"
            ) from None
        finally:
            del self._spans[ticket]
