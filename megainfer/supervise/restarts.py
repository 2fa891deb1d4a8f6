"""How often a node may die before its instance ends.

Pure: no processes; times are those of the caller's clock.
"""

from collections import defaultdict, deque

MOST_RESTARTS = 5
WINDOW_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 0.5
"""Before the second restart in a window, and twice as long before each further one."""


class Restarts:
    """most: restarts of one node that a window of so many seconds may see; one more is a loop."""

    def __init__(self, most: int = MOST_RESTARTS, window: float = WINDOW_SECONDS) -> None:
        self.most = most
        self.window = window
        self._deaths: dict[object, deque[float]] = defaultdict(deque)

    def died(self, node: object, now: float) -> float | None:
        """Seconds to wait before it is started again; None if it has died too often.

        >>> restarts = Restarts(most=3, window=10)
        >>> [restarts.died("a", now) for now in (0, 1, 2, 3, 20)]
        [0.0, 0.5, 1.0, None, 0.0]
        """
        deaths = self._deaths[node]
        deaths.append(now)
        while now - deaths[0] > self.window:
            deaths.popleft()
        if len(deaths) > self.most:
            return None
        return FIRST_PAUSE_SECONDS * 2 ** (len(deaths) - 2) if len(deaths) > 1 else 0.0
