"""How much of a thread's CPU time each callback of an event loop takes."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

WORTH_NOTING = 0.005
LONGEST_SECONDS = 0.1
"""That a callback may take, of a processor whose core nobody else works on."""
USUAL_SECONDS = 0.008
"""Of `_work` on such a one."""


@dataclass
class Callbacks:
    """longest: seconds of CPU time, and what it was."""

    longest: tuple[float, str] = (0.0, "")
    by_label: dict[str, tuple[float, str]] = field(default_factory=dict)
    label: str = ""

    def note(self, seconds: float, what: str) -> None:
        if seconds > self.by_label.get(self.label, (0.0, ""))[0]:
            self.by_label[self.label] = seconds, what
        if seconds > self.longest[0]:
            self.longest = seconds, f"{self.label}: {what}"


@contextmanager
def watched_callbacks(thread: int | None) -> Iterator[Callbacks]:
    """Of the loop of this thread, while this lasts. CPU time, not wall clock: it is the same on
    a busy machine. What is there already isn't looked through by the collector meanwhile, as in the
    server's own process."""
    seen = Callbacks()
    run = asyncio.events.Handle._run  # type: ignore[attr-defined]

    def timed(handle: Any) -> None:
        before = time.thread_time()
        run(handle)
        took = time.thread_time() - before
        if took > WORTH_NOTING and threading.get_ident() == thread:
            seen.note(took, repr(handle)[:400])

    gc.collect()
    gc.freeze()
    asyncio.events.Handle._run = timed  # type: ignore[attr-defined]
    try:
        yield seen
    finally:
        asyncio.events.Handle._run = run  # type: ignore[attr-defined]
        gc.unfreeze()


def allowed_seconds() -> float:
    """What a callback may take here and now: a neighbour on the same core makes CPU time longer, up
    to twice, and some processors are slower."""
    return LONGEST_SECONDS * max(1.0, max(_work() for _ in range(9)) / USUAL_SECONDS)


def _work() -> float:
    """Seconds of CPU time that some ordinary Python takes."""
    before, found = time.thread_time(), dict[int, str]()
    for number in range(60_000):
        found[number % 997] = str(number)
    return time.thread_time() - before
