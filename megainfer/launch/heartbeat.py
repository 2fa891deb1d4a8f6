"""What a process shows of itself without a word: a page of memory that the supervisor reads.

A thread beats as long as the process runs at all. The main loop writes down until when the piece of
work at hand should be done, so that one that is stuck is told from one that has much to do.
"""

import asyncio
from mmap import PAGESIZE, mmap
from threading import Thread
from time import monotonic, sleep

BEAT_SECONDS = 0.1
TURN_SECONDS = 3.0
"""Whatever an event loop has to do, it comes round again within this time; what could take longer
is done beside it."""

UNKNOWN_SECONDS = 60.0
"""What the first piece of work may take: it may have to bring weights in from a disk."""
LEAST_SECONDS = 3.0
PATIENCE = 50.0
"""How many times as long as was to be expected a piece of work may take."""
FORGET = 0.999
"""A slow piece of work counts less and less with every one that comes after it."""
SETUP_ROWS = 8
"""What a piece of work takes without any rows, in rows."""


class Page:
    """Two words, shared with whoever is forked after it was made. Each is stored at once."""

    def __init__(self) -> None:
        self._memory = mmap(-1, PAGESIZE)
        self._beats = memoryview(self._memory)[:8].cast("Q")
        self._due = memoryview(self._memory)[8:16].cast("d")

    @property
    def beats(self) -> int:
        return self._beats[0]

    @beats.setter
    def beats(self, beats: int) -> None:
        self._beats[0] = beats

    @property
    def due(self) -> float:
        """On the monotonic clock, which all processes of a host share; 0: nothing is at hand."""
        return self._due[0]

    @due.setter
    def due(self, due: float) -> None:
        self._due[0] = due

    def close(self) -> None:
        self._beats.release()
        self._due.release()
        self._memory.close()


def begin_to_beat(page: Page) -> None:
    """For as long as this process lives, in a thread that does nothing else."""
    Thread(target=_beat, args=(page,), name="heartbeat", daemon=True).start()


def _beat(page: Page) -> None:
    while True:
        page.beats += 1
        sleep(BEAT_SECONDS)


class Workload:
    """Announces until when the main loop's work should be done, from what work took so far."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._slowest = 0.0  # seconds a row, lately
        self._rows = SETUP_ROWS
        self._began = 0.0  # 0: it rests

    def begin(self, now: float) -> None:
        """A turn begins, and the last one has ended. now: on the monotonic clock."""
        if self._began:
            seconds = (now - self._began) / self._rows
            slowest = self._slowest * FORGET
            self._slowest = seconds if seconds > slowest else slowest
        self._began, self._rows = now, SETUP_ROWS
        self._announce()

    def rows(self, rows: int) -> None:
        """So many are what this turn is about."""
        self._rows = SETUP_ROWS + rows
        self._announce()

    def rest(self) -> None:
        """Nothing is at hand."""
        self._began = self._page.due = 0.0

    def _announce(self) -> None:
        expected = PATIENCE * self._slowest * self._rows if self._slowest else UNKNOWN_SECONDS
        self._page.due = self._began + max(LEAST_SECONDS, expected)


async def keep_due(page: Page) -> None:
    """Announce that the running event loop comes round, for as long as it does."""
    while True:
        page.due = monotonic() + TURN_SECONDS
        await asyncio.sleep(TURN_SECONDS / 10)
