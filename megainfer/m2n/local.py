"""M2N inside one process: the oracle of tests.

All ports of a hub belong to one thread: a bell is a flag, so nobody can ring it during a `wait`.
"""

import select
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap

from megainfer.m2n.geometry import Geometry
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.attention_port import SlotAttentionPort
from megainfer.m2n.slotted.expert_port import SlotExpertPort
from megainfer.m2n.slotted.mail import Memory, Newcomer
from megainfer.m2n.slotted.opening import choose_mover


@dataclass(slots=True)
class LocalNode:
    """What is heard and seen of a node from outside."""

    rang: bool = False
    closed: bool = False


class LocalWire:
    """`port.Wire` between nodes of one process."""

    def __init__(self, own: LocalNode, peers: Sequence[LocalNode]) -> None:
        self._own = own
        self._peers = peers

    def ring(self, peer: int) -> None:
        self._peers[peer].rang = True

    def ring_self(self) -> None:
        self._own.rang = True

    def lost_peers(self) -> frozenset[int]:
        return frozenset(index for index, peer in enumerate(self._peers) if peer.closed)

    def newcomers(self) -> Sequence[Newcomer]:
        """All are there from the beginning."""
        return ()

    def part(self, peer: int) -> None:
        """Its memory is here anyway."""

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        if self._own.rang:
            self._own.rang = False
            return
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        poller.poll(max(timeout, 0.0) * 1000)

    def close(self) -> None:
        self._own.closed = True
        for peer in self._peers:
            peer.rang = True


class LocalHub:
    """The slots and ports of M attention and N expert nodes, all in this process."""

    def __init__(self, geometry: Geometry, epoch: int = 0, mover: str | None = None) -> None:
        """mover: see `roads.PortOptions`."""
        self._geometry = geometry
        self._mover = choose_mover(mover)
        self._epoch = epoch
        self._attention = [LocalNode() for _ in range(geometry.num_attention)]
        self._experts = [LocalNode() for _ in range(geometry.num_expert)]
        self._replies = [mmap(-1, geometry.attention_region_bytes) for _ in self._attention]
        self._messages = [mmap(-1, geometry.expert_region_bytes) for _ in self._experts]

    def attention_port(self, index: int) -> SlotAttentionPort:
        """The one port of attention node `index`."""
        seat = Seat(self._geometry, index, self._epoch)
        wire = LocalWire(self._attention[index], self._experts)
        mail = self._mover.attention(seat, Memory(self._replies[index], self._messages))
        return SlotAttentionPort(seat, mail, wire)

    def expert_port(self, index: int) -> SlotExpertPort:
        """The one port of expert node `index`."""
        seat = Seat(self._geometry, index, self._epoch)
        wire = LocalWire(self._experts[index], self._attention)
        mail = self._mover.expert(seat, Memory(self._messages[index], self._replies))
        return SlotExpertPort(seat, mail, wire)
