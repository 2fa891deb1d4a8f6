"""Whose turn it is among several clients: who has fewer sequences running comes first."""

from collections import Counter
from collections.abc import KeysView

from megainfer.attention_node.scheduling.sequence import Sequence

Rank = tuple[int, int]
LEAST_ROWS = 8
"""Sequences that a client may have in steps, however few the others have."""


class ClientTurns:
    """Counts what runs by client. Priorities order a client's own sequences; with one client alone
    they and the order of arrival are all that counts."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    def begin(self, sequence: Sequence) -> None:
        """It runs."""
        self._running[sequence.submit.client] += 1

    def end(self, sequence: Sequence) -> None:
        """It doesn't any more."""
        client = sequence.submit.client
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

    def rank(self, sequence: Sequence) -> Rank:
        """Smaller is served first."""
        return self._running[sequence.submit.client], sequence.order

    def owes(self, client: str, other: str) -> bool:
        """Whether `client` has so much more running than `other` that one of its sequences has to
        go for one of the other's."""
        return self._running[client] >= self._running[other] + 2

    def is_behind(self, client: str) -> bool:
        """Whether any client owes it a place."""
        return any(self.owes(other, client) for other in self._running)

    def is_alone(self, client: str) -> bool:
        """Whether all that runs is of this one."""
        return self._running.keys() <= {client}

    @property
    def clients(self) -> KeysView[str]:
        """Those of whom any sequence runs."""
        return self._running.keys()

    def rows(self, client: str, lanes: int) -> int | None:
        """How many of its sequences may decode in one step of one of so many micro-batches, where
        others are served as well: as many as theirs, so that their steps take twice as long at
        most. None where there is no bound."""
        others = self._running.total() - self._running[client]
        if self._running[client] <= max(others, LEAST_ROWS):
            return None
        return -(-max(others, LEAST_ROWS) // lanes)

    def count(self) -> Counter[str]:
        """Sequences that run, by client."""
        return Counter(self._running)
