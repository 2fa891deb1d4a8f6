"""The receiving end of a node's slots: finds what was published since the last look."""

import time
from collections.abc import Iterator
from typing import Protocol

from megainfer.errors import ProtocolError
from megainfer.m2n.counters import Counters
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.message import Header, Kind, check_layout
from megainfer.m2n.slotted.mail import Newcomer, Tally
from megainfer.m2n.slotted.slots import Slots, being_written, published_word


class Looking(Protocol):
    """What finds a node's messages: `Inbox`, or the same in C++."""

    slots: Slots

    @property
    def counters(self) -> Tally: ...

    def news(self) -> bool:
        """See `Inbox.news`."""

    def awaits(self) -> bool:
        """See `Inbox.awaits`."""

    def scan(self, since: int | None = None) -> list[tuple[int, Header]]:
        """See `Inbox.scan`."""

    def set_epoch(self, epoch: int) -> None: ...

    def watch(self, newcomer: Newcomer) -> None:
        """Somebody is there who may send."""

    def leave(self, peer: int) -> None:
        """Nobody is any more, in whose slots there could be news."""


class Sieve:
    """Which messages a receiver acts on: of its epoch, and in a slot in the order of sequences."""

    def __init__(self, slots: int, epoch: int) -> None:
        self.epoch = epoch
        self.counters = Counters()
        self._latest = [0] * slots  # the highest sequence taken from each slot

    def is_early(self, header: Header) -> bool:
        """It is of an epoch that is yet to begin, and is to be looked at once more then."""
        return header.epoch > self.epoch

    def passes(self, slot: int, header: Header) -> bool:
        """Of one that isn't early; it is counted. Raises ProtocolError where a later one of its
        epoch has come: dropping it would leave its sender waiting for a reply."""
        if header.epoch < self.epoch:
            self.counters.dropped += 1
            return False
        if header.sequence <= self._latest[slot]:
            raise gone_back(header)
        self._latest[slot] = header.sequence
        self.counters.received(header)
        return True

    def time_transfers(self, found: list[tuple[int, Header]], since: int) -> None:
        """Count how long those messages took that were sent while the receiver was waiting.

        The others also waited for it to be done with something else, which is not transfer.
        """
        now = time.monotonic_ns()
        for _, header in found:
            if header.sent_at >= since:
                self.counters.transferred(now - header.sent_at)


class Inbox:
    """All slots of one receiver: slot `peer * m + micro_batch` for each peer and micro-batch.

    kinds: what this side may be sent. Messages of an older epoch are dropped and counted; one of a
    newer epoch stays parked in its slot until `set_epoch`. Within an epoch sequences only grow.
    """

    def __init__(
        self, slots: Slots, geometry: Geometry, kinds: frozenset[Kind], epoch: int
    ) -> None:
        self.slots = slots
        self._geometry = geometry
        self._kinds = kinds
        count = len(slots.words())
        self._sieve = Sieve(count, epoch)
        self.counters = self._sieve.counters
        self._handled = [0] * count  # the word of each slot that was last dealt with
        self._parked: set[int] = set()

    def news(self) -> bool:
        """Whether `scan` would find a message that was not dealt with."""
        return any(self._unseen())

    def awaits(self) -> bool:
        """Whether somebody has announced what is yet to be published."""
        return self.slots.awaited(self._sieve.epoch)

    def scan(self, since: int | None = None) -> list[tuple[int, Header]]:
        """(slot, header) of every message to act on, each message once.

        since: when the receiver, idle, began to wait (ns); None if it did not.
        Raises ProtocolError on a malformed one, and on one that comes after a later one of its
        epoch: dropping it would leave its sender waiting for a reply. What else this look had found
        is lost then.
        """
        found = []
        for slot, word in self._unseen():
            header = self._take(slot, word)
            if header is not None:
                found.append((slot, header))
        if found and since is not None:
            self._sieve.time_transfers(found, since)
        return found

    def watch(self, newcomer: Newcomer) -> None:
        """It looks at all slots as it is."""

    def leave(self, peer: int) -> None:
        """Nobody writes there any more."""

    def set_epoch(self, epoch: int) -> None:
        self._sieve.epoch = epoch
        for slot in self._parked:
            self._handled[slot] = 0  # look at it again
        self._parked.clear()

    def _unseen(self) -> Iterator[tuple[int, int]]:
        """(slot, word) of what was published and not yet looked at."""
        for slot, word in enumerate(self.slots.words()):
            if word != self._handled[slot] and not being_written(word):
                yield slot, word

    def _take(self, slot: int, word: int) -> Header | None:
        data = self.slots.header_bytes(slot, word)
        if data is None:  # rewritten while we read; its writer will ring again
            return None
        self._handled[slot] = word
        self._parked.discard(slot)
        header = Header.unpack(data)
        check_message(slot, word, header, self._geometry, self._kinds)
        if self._sieve.is_early(header):
            self._parked.add(slot)
            return None
        return header if self._sieve.passes(slot, header) else None


def check_message(
    slot: int, word: int, header: Header, geometry: Geometry, kinds: frozenset[Kind]
) -> None:
    """Raises ProtocolError when what was published as `word` can't be in this slot."""
    check_layout(header, geometry)
    if header.kind not in kinds:
        expected = " or ".join(sorted(kind.name for kind in kinds))
        raise ProtocolError(f"M2N message of kind {Kind(header.kind).name} where {expected}")
    source, micro_batch = divmod(slot, geometry.micro_batches)
    if (header.source, header.micro_batch) != (source, micro_batch):
        raise ProtocolError(
            f"M2N message from node {header.source}, micro-batch {header.micro_batch} in the "
            f"slot of node {source}, micro-batch {micro_batch}"
        )
    if published_word(header.sequence) != word:
        raise ProtocolError(
            f"M2N message with sequence {header.sequence} was published as {word >> 1}"
        )


def gone_back(header: Header) -> ProtocolError:
    """What is wrong with a message that comes after a later one of its epoch."""
    return ProtocolError(
        f"M2N message {header.sequence} of epoch {header.epoch} from node {header.source}, "
        f"micro-batch {header.micro_batch}, comes after a later one"
    )
