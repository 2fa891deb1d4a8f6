"""Messages that links have received, on their way to the node's own thread."""

from threading import Lock
from typing import Protocol

from megainfer.m2n.dist.slots import OwnSlots
from megainfer.m2n.host.region import Bell
from megainfer.m2n.message import Header
from megainfer.m2n.slotted.inbox import Sieve
from megainfer.m2n.slotted.mail import Newcomer
from megainfer.m2n.slotted.slots import Slots


class Source(Protocol):
    """A link, as what comes over it is heard."""

    index: int
    incarnation: int


class Arrivals:
    """Where the links of a node put what they were sent; then the node is rung for.

    Any thread may call it. Of two links to one node, the later incarnation's is heard. Of two
    messages for one slot the later one stands there, as it does in memory that peers write.
    """

    def __init__(self, slots: OwnSlots, micro_batches: int, bell: Bell) -> None:
        self._slots = slots
        self._micro_batches = micro_batches
        self._bell = bell
        self._lock = Lock()  # whoever ends is heard no more
        self._heard: dict[int, Source] = {}
        self._news: dict[int, Header] = {}  # by slot

    def hear(self, source: Source) -> None:
        """From now on this is the link to its peer."""
        with self._lock:
            other = self._heard.get(source.index)
            if other is None or other.incarnation <= source.incarnation:
                self._heard[source.index] = source

    def put(self, source: Source, header: Header, text: bytes) -> None:
        """What has arrived, payload and all, and was checked."""
        slot = source.index * self._micro_batches + header.micro_batch
        with self._lock:
            if self._heard.get(source.index) is not source:
                return
            if text:
                self._slots.write_text(slot, text)
            self._news[slot] = header
            self._bell.ring()

    def put_back(self, early: dict[int, Header]) -> None:
        """They are to be looked at once more, but for those in whose slots others stand by now."""
        with self._lock:
            self._news = {**early, **self._news}

    def has_news(self) -> bool:
        return bool(self._news)

    def take(self) -> dict[int, Header]:
        """What was put since the last time."""
        with self._lock:
            taken, self._news = self._news, {}
        return taken

    def close(self) -> None:
        """Nobody is heard any more."""
        with self._lock:
            self._heard.clear()


class ArrivedInbox:
    """`inbox.Looking` over what links have received and checked."""

    def __init__(self, slots: OwnSlots, arrivals: Arrivals, count: int, epoch: int) -> None:
        self.slots: Slots = slots
        self._arrivals = arrivals
        self._sieve = Sieve(count, epoch)
        self.counters = self._sieve.counters
        self._early: dict[int, Header] = {}  # by slot
        self.news = arrivals.has_news

    def awaits(self) -> bool:
        """See `inbox.Inbox.awaits`: publishing is the announcement."""
        return False

    def scan(self, since: int | None = None) -> list[tuple[int, Header]]:
        """See `inbox.Inbox.scan`."""
        found = []
        for slot, header in sorted(self._arrivals.take().items()):
            if self._sieve.is_early(header):
                self._early[slot] = header
                continue
            self._early.pop(slot, None)
            if self._sieve.passes(slot, header):
                found.append((slot, header))
        if found and since is not None:
            self._sieve.time_transfers(found, since)
        return found

    def set_epoch(self, epoch: int) -> None:
        """See `inbox.Inbox.set_epoch`."""
        self._sieve.epoch = epoch
        early, self._early = self._early, {}
        self._arrivals.put_back(early)

    def watch(self, newcomer: Newcomer) -> None:
        """Its link is heard as it is."""

    def leave(self, peer: int) -> None:
        """Nothing comes from there any more."""
