"""The answers of a step: those that go on first, then new ones, always as many.

Source: T-PPO (arXiv 2506.15050): a pool of constant size, in which finished answers are replaced by
answers to new problems. An answer that isn't finished stays until it is.
"""

from collections import deque
from collections.abc import Callable, Sequence

from megainfer.rl.samples.sample import Sample


class Pool:
    """At most `size` answers are worked on in a step.

    A problem's answers are begun together, but places become free one by one: what has no place yet
    waits, and is taken before another problem is drawn.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._running: list[Sample] = []
        self._waiting: deque[Sample] = deque()

    @classmethod
    def of(cls, size: int, running: Sequence[Sample], waiting: Sequence[Sample]) -> "Pool":
        """As it was when `running` and `waiting` were read from it."""
        pool = cls(size)
        pool._running, pool._waiting = list(running), deque(waiting)
        pool.check_integrity()
        return pool

    @property
    def running(self) -> Sequence[Sample]:
        """What has a place, the oldest first."""
        return self._running

    @property
    def waiting(self) -> Sequence[Sample]:
        """What was begun with others of its problem and has no place yet."""
        return list(self._waiting)

    def fill(self, draw: Callable[[], Sequence[Sample]]) -> list[Sample]:
        """The answers of the next step. draw: all answers to another problem, none of them begun;
        it gives at least one."""
        while len(self._running) < self._size:
            if not self._waiting:
                self._waiting.extend(draw())
            self._running.append(self._waiting.popleft())
        return list(self._running)

    def release(self) -> list[Sample]:
        """Take the finished answers out, and return them; the others go on with the next step."""
        finished = [sample for sample in self._running if sample.finished]
        self._running = [sample for sample in self._running if not sample.finished]
        return finished

    def check_integrity(self) -> None:
        """Our own invariants: no more than there is room for, each once, nothing begun waits."""
        numbers = [sample.number for sample in (*self._running, *self._waiting)]
        assert len(self._running) <= self._size
        assert len(set(numbers)) == len(numbers)
        assert not any(sample.windows for sample in self._waiting)
