"""Who comes next, where several clients wait for the same. Pure: no clock, no I/O."""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Each client's items in their order; of the clients the one next that has had the least work.

    A client that comes back is served as if it had had as much as the one that had least, so that
    nobody saves up turns by staying away.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()
        self._had: dict[str, float] = {}  # work, of those who wait or have been served since
        self._least = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def count(self, client: str) -> int:
        """How many of its items wait."""
        return len(self._waiting.get(client, ()))

    def push(self, client: str, item: Item) -> None:
        """Let an item wait."""
        if client not in self._waiting:
            self._waiting[client] = deque()
            self._had[client] = max(self._had.get(client, 0.0), self._least)
        self._waiting[client].append(item)

    @property
    def clients(self) -> Collection[str]:
        """Who waits."""
        return self._waiting.keys()

    def pop(self, may: Callable[[str], bool] | None = None) -> tuple[str, Item] | None:
        """Whose turn it is, and with what; None when nobody waits. may: who is passed over where
        it says no."""
        clients = self._waiting if may is None else list(filter(may, self._waiting))
        if not clients:
            return None
        client = min(clients, key=self._had.__getitem__)  # the first of several
        self._least = max(self._least, self._had[client])
        item = self._waiting[client].popleft()
        if not self._waiting[client]:
            del self._waiting[client]
        return client, item

    def charge(self, client: str, work: float) -> None:
        """It has had so much work done."""
        self._had[client] = max(self._had.get(client, 0.0), self._least) + work
        if not self._waiting:
            self._had = {c: had for c, had in self._had.items() if had > self._least}

    def remove(self, client: str, item: Item) -> None:
        """It doesn't wait any more; unknown ones are ignored."""
        items = self._waiting.get(client)
        if items is not None and item in items:
            items.remove(item)
            if not items:
                del self._waiting[client]
