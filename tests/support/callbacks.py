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
