"""Requests whose grammar is being compiled; they join the scheduler's queue afterwards."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from megainfer.errors import MegaInferError, RequestError
from megainfer.messages.requests import Submit
from megainfer.sharing.fair_queue import FairQueue
from megainfer.structured.grammar import MAX_STACK_BYTES

if TYPE_CHECKING:
    from megainfer.structured.compiler import GrammarCompiler
    from megainfer.structured.matcher import TokenMatcher


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request that can go on, with its matcher or with what is wrong. arrived_at: in seconds of
    the clock that `start` was told of."""

    submit: Submit
    arrived_at: float
    outcome: "TokenMatcher | MegaInferError"


class GrammarQueue(Sized, Protocol):
    """Requests whose grammar is being compiled."""

    def start(self, submit: Submit, now: float) -> None:
        """Compile the request's grammar; `finished` will give it back. Raises RequestError."""

    def forget(self, request_id: str) -> None:
        """The request was aborted; unknown ones are ignored."""

    def expire(self, now: float) -> Iterable[str]:
        """Forget the requests that have waited for longer than they may; their ids."""

    def finished(self) -> Iterable[Compiled]:
        """Requests that can go on."""


class NoCompiling:
    """`GrammarQueue` of a node that compiles none: requests with a grammar are refused."""

    def __len__(self) -> int:
        return 0

    def start(self, submit: Submit, now: float) -> None:
        """See `GrammarQueue.start`."""
        raise RequestError("this node compiles no grammars", "structured_outputs")

    def forget(self, request_id: str) -> None:
        """None is known."""

    def expire(self, now: float) -> Iterable[str]:
        """None waits."""
        return ()

    def finished(self) -> Iterable[Compiled]:
        """None was begun."""
        return ()


class Compiling:
    """`GrammarQueue` of one thread that compiles, by turns of clients; `load` makes its compiler,
    at the first unless `prepare` was called.

    What is compiled here has been tried out by the front end, so each takes a bounded time. Its
    stack is larger than the one there: a grammar that just had room there has it here.
    """

    def __init__(self, load: "Callable[[], GrammarCompiler]") -> None:
        self._load = load
        self._compiler: GrammarCompiler | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._wanted: dict[str, tuple[Submit, float]] = {}  # and when they came
        self._queue: FairQueue[str] = FairQueue()  # of those that aren't being compiled
        self._busy = False
        self._done: deque[tuple[Submit, Future[TokenMatcher]]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __len__(self) -> int:
        return len(self._wanted)

    def prepare(self) -> None:
        """Make the compiler now: a large vocabulary takes seconds, in which nothing else runs.

        A model that can't have one says so to the first request that asks for it.
        """
        with suppress(RequestError):
            self._compiler = self._load()

    def start(self, submit: Submit, now: float) -> None:
        """See `GrammarQueue.start`."""
        self._wanted[submit.request_id] = submit, now
        self._queue.push(submit.client, submit.request_id)
        self._go_on()

    def _go_on(self) -> None:
        """Begin the next one, unless one is being compiled."""
        while not self._busy and (following := self._queue.pop()) is not None:
            client, request_id = following
            submit, _ = self._wanted[request_id]
            self._busy = True
            self._queue.charge(client, 1)
            future = self._submit(submit)
            future.add_done_callback(partial(self._ring, submit))

    def _submit(self, submit: Submit) -> "Future[TokenMatcher]":
        """The thread is made with the first one; a thread has the stack that is set just then."""
        before = threading.stack_size(4 * MAX_STACK_BYTES)
        try:
            return self._thread.submit(self._compile, submit)
        finally:
            threading.stack_size(before)

    def forget(self, request_id: str) -> None:
        """See `GrammarQueue.forget`."""
        submit, _ = self._wanted.pop(request_id, (None, 0.0))
        if submit is not None:
            self._queue.remove(submit.client, request_id)

    def expire(self, now: float) -> list[str]:
        """See `GrammarQueue.expire`."""
        expired = [
            submit.request_id
            for submit, arrived_at in self._wanted.values()
            if submit.max_queue_seconds is not None and now - arrived_at > submit.max_queue_seconds
        ]
        for request_id in expired:
            self.forget(request_id)
        return expired

    def finished(self) -> Iterator[Compiled]:
        """See `GrammarQueue.finished`."""
        self._quiet()  # first: what is done meanwhile rings again
        while self._done:
            submit, future = self._done.popleft()
            self._busy = False
            self._go_on()
            wanted, arrived_at = self._wanted.get(submit.request_id, (None, 0.0))
            if wanted is submit:
                self.forget(submit.request_id)
                yield Compiled(submit, arrived_at, _outcome(future))

    def pending(self) -> bool:
        return bool(self._done)

    def fileno(self) -> int:
        """Readable when `finished` has something new."""
        return self._bell

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        os.close(self._bell)

    def _compile(self, submit: Submit) -> "TokenMatcher":
        assert submit.grammar is not None
        if self._compiler is None:
            self._compiler = self._load()
        matcher = self._compiler.compile(submit.grammar)
        if submit.output:
            matcher.take(submit.output)
        return matcher

    def _ring(self, submit: Submit, future: "Future[TokenMatcher]") -> None:
        self._done.append((submit, future))
        if not future.cancelled():
            os.eventfd_write(self._bell, 1)

    def _quiet(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return


def _outcome(future: "Future[TokenMatcher]") -> "TokenMatcher | MegaInferError":
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, MegaInferError):
        return error
    return MegaInferError(f"compiling the grammar failed: {error!r}")
