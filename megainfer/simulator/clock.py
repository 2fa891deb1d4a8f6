"""The clock that simulated nodes share."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Runs actions in the order of their times; those of equal times in the order of asking."""

    now: float = 0.0
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _asked: int = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._asked += 1
        heapq.heappush(self._queue, (time, self._asked, action))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until
