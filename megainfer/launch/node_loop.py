"""The main loop that every node process runs, whatever its role.

A node is a `Unit`: it does one piece of work at a time and never blocks in it. Between two pieces
the loop hears the supervisor; without work it sleeps until a doorbell, a socket or a deadline.
"""

import gc
import math
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from megainfer.instruments.stage_clock import Span
from megainfer.launch.control import ParentLink
from megainfer.launch.heartbeat import Workload
from megainfer.messages.from_child import Entered, LoadProgress, Spans, Stats
from megainfer.messages.message import Message
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import Enter, GetSpans, GetStats, KeepSpans, Stop
from megainfer.topology import Membership

MAX_SLEEP_SECONDS = 1.0
"""Nothing depends on waking from this sleep; it only bounds what a lost wake-up could cost."""
PULSE_SECONDS = 1.0
"""How often a node tells its counters unasked: what it is known by to be alive and answering."""
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

    def enter(self, membership: Membership) -> None:
        """From now on it takes part in this one; between two pieces of work.

        Raises ConfigError where it can't.
        """

    def hear(self, message: ToChild) -> None:
        """Anything else that the supervisor says; between two pieces of work."""

    def news(self) -> Sequence[Message]:
        """What the supervisor should know since the last call; it is asked often."""

    def counters(self) -> dict[str, Any]:
        """By each node's name, everything countable since the start; msgpack-able."""

    def keep_spans(self, count: int) -> None:
        """Keep so many of each node's latest spans from now on; 0: none."""

    def take_spans(self) -> dict[str, list[Span]]:
        """By each node's name, the latest spans of its work; none unless asked to trace."""

    def close(self) -> None: ...


def run_until_stopped(
    link: ParentLink, unit: Unit, work: Workload, pulse_seconds: float | None = None
) -> None:
    """Work until the supervisor says Stop.

    work: announces until when each piece should be done. pulse_seconds: how often to tell the
    counters unasked, None: never.

    Raises NodeDied when the supervisor is gone.
    """
    # All that was loaded stays: the collector need not look at it again (tens of ms each time).
    gc.freeze()
    try:
        _Loop(link, unit, work, pulse_seconds).run()
    finally:
        unit.close()


class _Loop:
    """Pieces of work, and between them the supervisor."""

    def __init__(
        self, link: ParentLink, unit: Unit, work: Workload, pulse_seconds: float | None
    ) -> None:
        self._link = link
        self._unit = unit
        self._work = work
        self._pulse_seconds = math.inf if pulse_seconds is None else pulse_seconds
        self._next_pulse = math.inf if pulse_seconds is None else monotonic()
        self._spans: deque[Spans] = deque()  # still to be sent, one at a look

    def run(self) -> None:
        next_look = 0.0
        while True:
            now = monotonic()
            self._work.begin(now)
            if now >= next_look:
                next_look = now + LOOK_SECONDS
                if self._told_to_stop():
                    return
                self._tell(now)
            if not self._unit.run_once():
                self._work.rest()
                self._unit.wait(self._sleep_bound(now), (self._link.fileno(),))

    def _sleep_bound(self, now: float) -> float:
        if self._spans:
            return LOOK_SECONDS
        return max(0.0, min(MAX_SLEEP_SECONDS, self._next_pulse - now))

    def _told_to_stop(self) -> bool:
        message = self._link.receive(timeout=0)
        match message:
            case GetStats(ticket=ticket):
                self._link.send(Stats(ticket, self._unit.counters()))
            case Enter(membership=membership):
                self._unit.enter(membership)
                self._link.offer(Entered(membership.epoch))
            case KeepSpans(count=count):
                self._unit.keep_spans(count)
            case GetSpans(ticket=ticket):
                self._spans.extend(_messages(ticket, self._unit.take_spans()))
            case Stop():
                return True
            case None:
                pass
            case _:
                self._unit.hear(message)
        return False

    def _tell(self, now: float) -> None:
        """What may be told without waiting: a supervisor that hangs holds up no node."""
        for message in self._unit.news():
            self._link.offer(message)
        if self._spans and self._link.offer(self._spans[0]):
            self._spans.popleft()
        if now >= self._next_pulse:
            self._next_pulse = now + self._pulse_seconds
            self._link.offer(Stats(None, self._unit.counters()))


def _messages(ticket: int, spans: dict[str, list[Span]]) -> list[Spans]:
    pieces = [
        (node, own[first : first + SPANS_A_MESSAGE])
        for node, own in spans.items()
        for first in range(0, max(len(own), 1), SPANS_A_MESSAGE)
    ]
    return [
        Spans(ticket, node, piece, last=number == len(pieces))
        for number, (node, piece) in enumerate(pieces, 1)
    ]


def progress_to(
    link: ParentLink, stage: str = "weights", times: int = 100
) -> Callable[[int, int], None]:
    """A listener to a start, (bytes or pieces that are done, in all), that tells so many times."""
    told = 0

    def on_bytes(done: int, total: int) -> None:
        nonlocal told
        if done >= total or done - told >= total / times:
            told = done
            link.send(LoadProgress(stage=stage, done=done, total=total))

    return on_bytes
