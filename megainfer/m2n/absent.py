"""The port of an attention node that has all experts itself: nobody is at the other end."""

import select
from collections.abc import Collection, Sequence

from torch import Tensor

from megainfer.device import HOST, Device
from megainfer.errors import ProtocolError
from megainfer.m2n.counters import Counters
from megainfer.m2n.mailbox import Arrival, Handle, Part


class AbsentPort:
    """`mailbox.AttentionPort` without expert nodes."""

    def __init__(self, device: Device = HOST) -> None:
        self.device = device

    def dispatch(
        self, micro_batch: int, layer: int, hidden: Tensor, parts: Sequence[Part]
    ) -> Handle:
        raise ProtocolError(f"layer {layer} has no expert node to go to")

    def poll(self) -> list[Arrival]:
        return []

    def combine(self, handle: Handle, out: Tensor) -> None:
        raise ProtocolError(f"layer {handle.layer} went to no expert node")

    def rest(self, micro_batch: int) -> None:
        """Nobody waits to be told."""

    def lost_peers(self) -> frozenset[int]:
        return frozenset()

    def wait(self, timeout: float, fds: Sequence[int] = ()) -> None:
        """See `mailbox.Port.wait`."""
        poller = select.poll()
        for descriptor in fds:
            poller.register(descriptor, select.POLLIN)
        poller.poll(max(timeout, 0.0) * 1000)

    def set_epoch(self, epoch: int, members: Collection[int] | None = None) -> None:
        """Memberships are of nodes that are elsewhere."""

    def counters(self) -> dict[str, int]:
        return Counters().as_dict()

    def close(self) -> None:
        """Nothing is held."""
