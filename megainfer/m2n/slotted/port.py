"""What the ports of both roles share, and what a transport has to provide for them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from megainfer.errors import ProtocolError
from megainfer.m2n.message import Header
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import Mail


class Wire(Protocol):
    """What differs between transports over shared slots: the bells, and who is alive."""

    def ring(self, peer: int) -> None:
        """Wake `peer`; never blocks, harmless when the peer is gone."""

    def ring_self(self) -> None:
        """Make the next `wait` return at once."""

    def lost_peers(self) -> frozenset[int]: ...

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        """See `mailbox.Port.wait`."""

    def close(self) -> None: ...


AnyMail = TypeVar("AnyMail", bound=Mail)


class SlotPort(ABC, Generic[AnyMail]):
    """What both ends do; `mail` moves the messages of one node."""

    def __init__(self, seat: Seat, mail: AnyMail, wire: Wire, num_peers: int) -> None:
        self._num_peers = num_peers
        self._members = frozenset(range(num_peers))  # the peers that take part in the epoch
        self._geometry = seat.geometry
        self._epoch = seat.epoch
        self.device = mail.device
        self._mail = mail
        self._wire = wire
        self._waiting_since: int | None = None  # when this node, idle, began to wait (ns)

    def set_epoch(self, epoch: int, members: Collection[int] | None = None) -> None:
        """See `mailbox.Port.set_epoch`."""
        if epoch < self._epoch:
            raise ProtocolError(f"epoch {epoch} is older than {self._epoch}; it only grows")
        if epoch > self._epoch:
            self._epoch = epoch
            self._members = frozenset(range(self._num_peers) if members is None else members)
            self._abandon()
            self._mail.set_epoch(epoch, sorted(self._members))
            self._wire.ring_self()  # for what was parked

    def lost_peers(self) -> frozenset[int]:
        return self._wire.lost_peers()

    def wait(self, timeout: float, fds: Sequence[int] = ()) -> None:
        self._waiting_since = time.monotonic_ns()
        self._wire.wait(timeout, fds)

    def counters(self) -> dict[str, int]:
        return self._mail.counters.as_dict()

    def close(self) -> None:
        self._mail.close()
        self._wire.close()

    @abstractmethod
    def _abandon(self) -> None:
        """Forget all that was in flight in the epoch that has ended."""

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
