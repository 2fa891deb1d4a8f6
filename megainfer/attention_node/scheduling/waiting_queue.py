"""Sequences that hold no block yet, or no longer: by priority, then first come, first served."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from megainfer.attention_node.scheduling.sequence import Sequence, Status

MAX_FINISHED = 64


class WaitingQueue:
    """In order of service, so that a preempted sequence comes back before all after it.

    A sequence that is aborted while it waits stays inside, finished, until it comes up or until
    more than half of those inside, and more than MAX_FINISHED, are finished.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, Sequence]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """In no particular order."""
        return (s for _, s in self._heap if s.status is not Status.FINISHED)

    def push(self, sequence: Sequence) -> None:
        heappush(self._heap, (sequence.order, sequence))
        self._length += 1

    def first(self) -> Sequence | None:
        while self._heap and self._heap[0][1].status is Status.FINISHED:
            heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop_first(self) -> Sequence:
        sequence = self.first()
        assert sequence is not None, "nobody waits"
        heappop(self._heap)
        self._length -= 1
        return sequence

    def forget(self) -> None:
        """One of those inside has finished; it no longer counts."""
        self._length -= 1
        if len(self._heap) > 2 * self._length + MAX_FINISHED:
            self._heap = [entry for entry in self._heap if entry[1].status is not Status.FINISHED]
            heapify(self._heap)
