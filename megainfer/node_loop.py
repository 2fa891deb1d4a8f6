"""The main loop that every node process runs, whatever its role.

A node is a `Unit`: it does one piece of work at a time and never blocks in it. Between two pieces
the loop hears the supervisor; without work it sleeps until a doorbell, a socket or a deadline.
"""

import gc
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from megainfer.control import ParentLink
from megainfer.messages import GetSpans, GetStats, Progress, Spans, Stats, Stop
from megainfer.stage_clock import Span

START_TIMEOUT_SECONDS = 3600.0
"""Others may still be loading; a supervisor that dies meanwhile is noticed at once."""
CONNECT_TIMEOUT_SECONDS = 30.0

MAX_SLEEP_SECONDS = 1.0
"""Nothing depends on waking from this sleep; it only bounds what a lost wake-up could cost."""
LOOK_SECONDS = 1e-3
"""The supervisor is heard about so often: each look is a system call, and a turn may take 50 us."""
SPANS_A_MESSAGE = 2000
"""About 40 bytes each, far below what a control link takes at once."""


class Unit(Protocol):
    """One node, or several in one process."""

    def run_once(self) -> bool:
        """Do one piece of work if there is any; whether there was."""

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        """Sleep until there may be work, one of `fds` is readable, or `timeout` seconds passed."""

    def counters(self) -> dict[str, Any]:
        """By each node's name, everything countable since the start; msgpack-able."""

    def take_spans(self) -> dict[str, list[Span]]:
        """By each node's name, the latest spans of its work; none unless asked to trace."""

    def close(self) -> None: ...


def run_until_stopped(link: ParentLink, unit: Unit) -> None:
    """Work until the supervisor says Stop.

    Raises NodeDied when the supervisor is gone.
    """
    # All that was loaded stays: the collector need not look at it again (tens of ms each time).
    gc.freeze()
    try:
        _loop(link, unit)
    finally:
        unit.close()


def _loop(link: ParentLink, unit: Unit) -> None:
    next_look = 0.0
    while True:
        if (now := monotonic()) >= next_look:
            next_look = now + LOOK_SECONDS
            if _told_to_stop(link, unit):
                return
        if not unit.run_once():
            unit.wait(MAX_SLEEP_SECONDS, (link.fileno(),))


def _told_to_stop(link: ParentLink, unit: Unit) -> bool:
    message = link.receive(timeout=0)
    if isinstance(message, GetStats):
        link.send(Stats(ticket=message.ticket, counters=unit.counters()))
    if isinstance(message, GetSpans):
        _send_spans(link, message.ticket, unit.take_spans())
    return isinstance(message, Stop)


def _send_spans(link: ParentLink, ticket: int, spans: dict[str, list[Span]]) -> None:
    pieces = [
        (node, own[first : first + SPANS_A_MESSAGE])
        for node, own in spans.items()
        for first in range(0, max(len(own), 1), SPANS_A_MESSAGE)
    ]
    for number, (node, piece) in enumerate(pieces, 1):
        link.send(Spans(ticket, node, piece, last=number == len(pieces)))


def progress_to(link: ParentLink) -> Callable[[int, int], None]:
    """A listener to loading, (bytes in place, bytes in all), that tells each further percent."""
    told = 0

    def on_bytes(done: int, total: int) -> None:
        nonlocal told
        if done >= total or done - told >= total / 100:
            told = done
            link.send(Progress(stage="weights", done=done, total=total))

    return on_bytes
