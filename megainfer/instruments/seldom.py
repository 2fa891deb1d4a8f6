"""Log lines that any client can cause, as often as it likes: one of a kind in a while is enough."""

import logging
from collections.abc import Callable
from time import monotonic

SECONDS = 10.0
MAX_KINDS = 256


class Seldom(logging.Filter):
    """Lets one line of a kind through in `seconds`; the next one says how many were left out. A
    kind is a message before its values are put in."""

    def __init__(self, seconds: float = SECONDS, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}  # when it was told last, and left out since

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        if record.levelno >= logging.ERROR:  # those are the server's own fault
            return True
        now, kind = self._clock(), str(record.msg)
        told_at, left_out = self._kinds.get(kind, (float("-inf"), 0))
        if now - told_at < self._seconds:
            self._kinds[kind] = told_at, left_out + 1
            return False
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        if left_out:
            record.msg = f"{record.getMessage()} (and {left_out} times more before)"
            record.args = None
        return True
