"""What both ends share whose peers are near, in other processes of the host, or far, on others."""

from collections.abc import Collection, Iterable, Sequence
from typing import Generic, TypeVar

from megainfer.device import Device
from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.host.ports import HostAttentionPort, HostExpertPort

AnyPort = TypeVar(
    "AnyPort", bound=HostAttentionPort | DistAttentionPort | HostExpertPort | DistExpertPort
)


class MixedPort(Generic[AnyPort]):
    """`mailbox.Port` over one of the host and one of a network, both of the same seat. A peer is
    heard and told on the road on which its latest process was met."""

    def __init__(self, near: AnyPort, far: AnyPort) -> None:
        assert near.device is far.device, "both are the host's, or both the node's GPU's"
        self.device: Device = near.device
        self._near, self._far = near, far
        self._ports = near, far
        self._on: dict[int, AnyPort] = {}  # by peer, of this epoch

    def set_epoch(self, epoch: int, members: Collection[int] | None = None) -> None:
        """See `mailbox.Port.set_epoch`."""
        if epoch == self._near.epoch:
            return
        for port in self._ports:
            port.admit_newcomers()
        on = self._latest()
        wanted = on if members is None else members
        # One that was never met is the near port's to refuse.
        self._near.set_epoch(epoch, [peer for peer in wanted if on.get(peer) is not self._far])
        self._far.set_epoch(epoch, [peer for peer in wanted if on.get(peer) is self._far])
        self._on = on

    def lost_peers(self) -> frozenset[int]:
        """See `mailbox.Port.lost_peers`."""
        near, far = self._near.lost_peers(), self._far.lost_peers()
        if not (near or far):
            return near
        return frozenset([*self._those(near, self._near), *self._those(far, self._far)])

    def wait(self, timeout: float, fds: Sequence[int] = ()) -> None:
        """See `mailbox.Port.wait`."""
        for port in self._ports:
            port.note_waiting()
        self._near.host.wait(timeout, fds, self._far.host.watched)
        self._far.host.wait(0.0, ())  # silences its bell before anybody looks: no ring is lost

    def counters(self) -> dict[str, int]:
        """See `mailbox.Port.counters`."""
        near, far = (port.counters() for port in self._ports)
        return {name: count + far[name] for name, count in near.items()}

    def close(self) -> None:
        """See `mailbox.Port.close`."""
        for port in self._ports:
            port.close()

    def _latest(self) -> dict[int, AnyPort]:
        """The road of each peer that was met: of its latest process."""
        near, far = (port.host.incarnations() for port in self._ports)
        return {
            peer: self._far if far.get(peer, -1) > near.get(peer, -1) else self._near
            for peer in near.keys() | far.keys()
        }

    def _those(self, peers: Iterable[int], port: AnyPort) -> list[int]:
        return [peer for peer in peers if self._on.get(peer, port) is port]
