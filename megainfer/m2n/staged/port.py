"""What both staged ends share."""

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

from megainfer.device import Device
from megainfer.m2n.mailbox import Port

LOOK_SECONDS = 20e-6
"""How long a node sleeps at most while its device fills something that is to be sent: no bell rings
for that."""

HostPort = TypeVar("HostPort", bound=Port)


class StagedPort(Generic[HostPort]):
    """`mailbox.Port` of a device, over one of the host."""

    def __init__(self, port: HostPort, device: Device) -> None:
        assert port.device.is_host, "only what the host sends is staged"
        self._port = port
        self.device = device

    def lost_peers(self) -> frozenset[int]:
        """See `mailbox.Port.lost_peers`."""
        return self._port.lost_peers()

    def wait(self, timeout: float, fds: Sequence[int] = ()) -> None:
        """See `mailbox.Port.wait`."""
        self._port.wait(min(timeout, LOOK_SECONDS) if self._leaving() else timeout, fds)

    def set_epoch(self, epoch: int, members: Collection[int] | None = None) -> None:
        """See `mailbox.Port.set_epoch`."""
        self._port.set_epoch(epoch, members)

    def counters(self) -> dict[str, int]:
        """See `mailbox.Port.counters`."""
        return self._port.counters()

    def close(self) -> None:
        """See `mailbox.Port.close`."""
        self._port.close()

    def _leaving(self) -> bool:
        """Whether something is still to be read back or told, before the host has sent all."""
        raise NotImplementedError
