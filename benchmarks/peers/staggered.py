"""Streams of a mock engine: each gets a token every 1 / RATE seconds, at its own moments.

Nothing but the standard library and numpy: it runs in the environments of other engines too.
"""

import heapq
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

RATE = 20.0  # tokens a second of each stream


class Due(NamedTuple):
    """One token: of which request, and whether it is the last."""

    request: str
    last: bool


class Streams:
    """sent: float64 [streams, tokens], where it is noted on CLOCK_MONOTONIC when each was due and
    handed over. A request for one token is due at once, and not noted."""

    def __init__(self, sent: np.ndarray) -> None:
        self._sent = sent
        self._due: list[tuple[float, int, int, str, int]] = []  # when, stream, token, id, of
        self._gone: set[str] = set()

    def begin(self, request: str, stream: int, tokens: int) -> None:
        # The golden ratio's multiples are spread evenly, however many streams there are.
        offset = (stream * 0.6180339887498949) % 1.0 / RATE if tokens > 1 else 0.0
        heapq.heappush(self._due, (time.monotonic() + offset, stream, 0, request, tokens))

    def abort(self, request: str) -> None:
        self._gone.add(request)

    def patience(self) -> float | None:
        """Seconds until the next token is due; None while nobody waits for one."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def due(self) -> Iterator[Due]:
        """The tokens whose time has come."""
        while self._due and self._due[0][0] <= time.monotonic():
            when, stream, token, request, tokens = heapq.heappop(self._due)
            if request in self._gone:
                continue
            last = token == tokens - 1
            if tokens > 1:
                self._sent[stream, token] = time.monotonic()
            yield Due(request, last)
            if not last:
                heapq.heappush(self._due, (when + 1 / RATE, stream, token + 1, request, tokens))
