"""What the ports of both roles share, and what a transport has to provide for them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from megainfer.errors import ProtocolError
from megainfer.m2n.message import Header
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import Mail, Newcomer


class Wire(Protocol):
    """What differs between transports over shared slots: the bells, and who is alive."""

    def ring(self, peer: int) -> None:
        """Wake `peer`; never blocks, harmless when the peer is gone."""

    def ring_self(self) -> None:
        """Make the next `wait` return at once."""

    def lost_peers(self) -> frozenset[int]: ...

    def newcomers(self) -> Sequence[Newcomer]:
        """Who was met since the last call: these are heard and rung from now on."""

    def part(self, peer: int) -> None:
        """Forget a peer that is gone for good."""

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        """See `mailbox.Port.wait`."""

    def close(self) -> None: ...


AnyMail = TypeVar("AnyMail", bound=Mail)


class SlotPort(ABC, Generic[AnyMail]):
    """What both ends do; `mail` moves the messages of one node.

    met: the peers that `mail` knows by now; they are members of the seat's epoch.
    """

    def __init__(self, seat: Seat, mail: AnyMail, wire: Wire, met: Collection[int]) -> None:
        self._met = set(met)
        self._members = frozenset(met)  # the peers that take part in the epoch
        self._geometry = seat.geometry
        self._epoch = seat.epoch
        self.device = mail.device
        self._mail = mail
        self._wire = wire
        self._waiting_since: int | None = None  # when this node, idle, began to wait (ns)

    @property
    def epoch(self) -> int:
        """That it is in."""
        return self._epoch

    def set_epoch(self, epoch: int, members: Collection[int] | None = None) -> None:
        """See `mailbox.Port.set_epoch`."""
        if epoch < self._epoch:
            raise ProtocolError(f"epoch {epoch} is older than {self._epoch}; it only grows")
        if epoch > self._epoch:
            self.admit_newcomers()
            self._members = self._all_met(epoch, self._met if members is None else members)
            self._part_from_the_lost()
            self._epoch = epoch
            self._abandon()
            self._mail.set_epoch(epoch, sorted(self._members))
            self._wire.ring_self()  # for what was parked

    def lost_peers(self) -> frozenset[int]:
        return self._wire.lost_peers()

    def wait(self, timeout: float, fds: Sequence[int] = ()) -> None:
        self.note_waiting()
        self._wire.wait(timeout, fds)

    def note_waiting(self) -> None:
        """This node, idle, begins to wait for whatever comes next."""
        self._waiting_since = time.monotonic_ns()

    def counters(self) -> dict[str, int]:
        return self._mail.counters.as_dict()

    def close(self) -> None:
        self._mail.close()
        self._wire.close()

    @abstractmethod
    def _abandon(self) -> None:
        """Forget all that was in flight in the epoch that has ended."""

    def begin(self) -> None:
        """Whoever was met by now is a member of the seat's epoch."""
        self.admit_newcomers()
        self._members = frozenset(self._met)
        self._mail.set_epoch(self._epoch, sorted(self._members))

    def admit_newcomers(self) -> None:
        """Whoever was met by now can be a member of the next epoch."""
        for newcomer in self._wire.newcomers():
            self._mail.admit(newcomer)
            self._met.add(newcomer.index)

    def _part_from_the_lost(self) -> None:
        """Who is gone and no member is not kept, so that those who come and go leave nothing."""
        for peer in (self._wire.lost_peers() & self._met) - self._members:
            self._mail.dismiss(peer)
            self._wire.part(peer)
            self._met.discard(peer)

    def _all_met(self, epoch: int, members: Collection[int]) -> frozenset[int]:
        if strangers := sorted(set(members) - self._met):
            raise ProtocolError(f"peers {strangers} are members of epoch {epoch}, but never met")
        return frozenset(members)

    def _scan(self) -> list[tuple[int, Header]]:
        since, self._waiting_since = self._waiting_since, None
        return self._mail.scan(since)

    def _slot(self, peer: int, micro_batch: int) -> int:
        return peer * self._geometry.micro_batches + micro_batch

    def _ring(self, peers: Iterable[int]) -> None:
        """Ring them unless sending did."""
        if not self._mail.rings:
            for peer in peers:
                self._wire.ring(peer)
