"""Sequences that hold no block yet, or no longer: by turns of clients, and of each by priority,
then first come, first served."""

from collections.abc import Collection, Iterator
from heapq import heapify, heappop, heappush

from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.turns import ClientTurns

MAX_FINISHED = 64
Heap = list[tuple[int, Sequence]]


class WaitingQueue:
    """In order of service, so that a preempted sequence comes back before all after it.

    A sequence that is aborted while it waits stays inside, finished, until it comes up or until
    more than half of those inside, and more than MAX_FINISHED, are finished.
    """

    def __init__(self, turns: ClientTurns | None = None) -> None:
        self._turns = turns or ClientTurns()
        self._heaps: dict[str, Heap] = {}  # by client; none of them is empty
        self._inside = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """In no particular order."""
        everybody = (sequence for heap in self._heaps.values() for _, sequence in heap)
        return (s for s in everybody if s.status is not Status.FINISHED)

    def push(self, sequence: Sequence) -> None:
        heap = self._heaps.setdefault(sequence.submit.client, [])
        heappush(heap, (sequence.order, sequence))
        self._inside += 1
        self._length += 1

    def heads(self) -> Iterator[Sequence]:
        """The next of each client."""
        for client in list(self._heaps):
            if (head := self._head(client)) is not None:
                yield head

    def first(self, without: Collection[str] = ()) -> Sequence | None:
        """The next of all but these clients."""
        heads = (head for head in self.heads() if head.submit.client not in without)
        return min(heads, key=self._turns.rank, default=None)

    def pop(self, sequence: Sequence) -> None:
        """It, its client's next, waits no longer."""
        client = sequence.submit.client
        assert self._head(client) is sequence, f"{sequence.request_id} isn't its client's next"
        self._pop(client)
        self._length -= 1

    def forget(self) -> None:
        """One of those inside has finished; it no longer counts."""
        self._length -= 1
        if self._inside > 2 * self._length + MAX_FINISHED:
            waiting = list(self)
            self._heaps.clear()
            for sequence in waiting:
                heap = self._heaps.setdefault(sequence.submit.client, [])
                heap.append((sequence.order, sequence))
            for heap in self._heaps.values():
                heapify(heap)
            self._inside = len(waiting)

    def _head(self, client: str) -> Sequence | None:
        while (heap := self._heaps.get(client)) and heap[0][1].status is Status.FINISHED:
            self._pop(client)
        return heap[0][1] if heap else None

    def _pop(self, client: str) -> None:
        heappop(self._heaps[client])
        self._inside -= 1
        if not self._heaps[client]:
            del self._heaps[client]
