"""What the ports of both roles share, and what a transport has to provide for them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.inbox import Inbox
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.slots import Slots


@dataclass(frozen=True, slots=True)
class Seat:
    """Which node of its role this is, in which membership, and the sizes all agreed on."""

    geometry: Geometry
    index: int
    epoch: int


class Wire(Protocol):
    """What differs between transports over shared slots: the bells, and who is alive."""

    def ring(self, peer: int) -> None:
        """Wake `peer`; never blocks, harmless when the peer is gone."""

    def ring_self(self) -> None:
        """Make the next `wait` return at once."""

    def lost_peers(self) -> frozenset[int]: ...

    def wait(self, timeout: float, fds: Sequence[int], changed: Callable[[], bool]) -> None:
        """See `mailbox.Port.wait`; `changed` tells whether a slot was touched."""

    def close(self) -> None: ...


class SlotPort(ABC):
    """One node's own slots (`inbox`) and its slots in each peer's memory (`outboxes`)."""

    def __init__(self, seat: Seat, inbox: Inbox, outboxes: Sequence[Slots], wire: Wire) -> None:
        self._geometry = seat.geometry
        self._index = seat.index
        self._epoch = seat.epoch
        self._inbox = inbox
        self._outboxes = outboxes
        self._wire = wire

    def set_epoch(self, epoch: int) -> None:
        """See `mailbox.Port.set_epoch`."""
        if epoch < self._epoch:
            raise ProtocolError(f"epoch {epoch} is older than {self._epoch}; it only grows")
        if epoch > self._epoch:
            self._epoch = epoch
            self._abandon()
            self._inbox.set_epoch(epoch)
            self._wire.ring_self()  # for what was parked

    def lost_peers(self) -> frozenset[int]:
        return self._wire.lost_peers()

    def wait(self, timeout: float, fds: Sequence[int] = ()) -> None:
        self._inbox.waiting_since = time.monotonic_ns()
        self._wire.wait(timeout, fds, self._inbox.changed)

    def counters(self) -> dict[str, int]:
        return self._inbox.counters.as_dict()

    def close(self) -> None:
        self._wire.close()

    @abstractmethod
    def _abandon(self) -> None:
        """Forget all that was in flight in the epoch that has ended."""

    def _slot(self, peer: int, micro_batch: int) -> int:
        return peer * self._geometry.micro_batches + micro_batch

    def _header(self, kind: Kind, sequence: int, layer: int, micro_batch: int) -> Header:
        """A header without payload, of a message that begins to be sent now."""
        return Header(
            kind=kind,
            dtype=self._geometry.dtype_code,
            epoch=self._epoch,
            sequence=sequence,
            layer=layer,
            micro_batch=micro_batch,
            source=self._index,
            rows=0,
            top_k=self._geometry.top_k,
            hidden_size=self._geometry.hidden_size,
            length=0,
            sent_at=time.monotonic_ns(),
        )

    def _post(self, peer: int, header: Header) -> None:
        """Publish what has been written since `begin`, and ring."""
        self._outboxes[peer].publish(header.micro_batch, header)
        self._inbox.counters.sent(header)
        self._wire.ring(peer)
