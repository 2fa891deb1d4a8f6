"""An expert node's end whose attention nodes are near or far."""

from torch import Tensor

from megainfer.m2n.dist.ports import DistExpertPort
from megainfer.m2n.host.ports import HostExpertPort
from megainfer.m2n.mailbox import Dispatch, Rest
from megainfer.m2n.mixed.port import MixedPort


class MixedExpertPort(MixedPort[HostExpertPort | DistExpertPort]):
    """`mailbox.ExpertPort`: attention nodes come to it on either road."""

    def __init__(self, near: HostExpertPort, far: DistExpertPort) -> None:
        super().__init__(near, far)
        self.address = far.address
        self._came_on: dict[tuple[int, int], HostExpertPort | DistExpertPort] = {}

    def receive(self) -> list[Dispatch | Rest]:
        """See `mailbox.ExpertPort.receive`."""
        found: list[Dispatch | Rest] = []
        for port in self._ports:
            for message in port.receive():
                self._came_on[message.source, message.micro_batch] = port
                found.append(message)
        return found

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mailbox.ExpertPort.reply_buffer`."""
        return self._road_of(dispatch).reply_buffer(dispatch)

    def reply(self, dispatch: Dispatch) -> None:
        """See `mailbox.ExpertPort.reply`."""
        self._road_of(dispatch).reply(dispatch)

    def reply_error(self, dispatch: Dispatch, message: str) -> None:
        """See `mailbox.ExpertPort.reply_error`."""
        self._road_of(dispatch).reply_error(dispatch, message)

    def _road_of(self, dispatch: Dispatch) -> HostExpertPort | DistExpertPort:
        """On which its source's latest message has come; to another road it is no longer owed."""
        return self._came_on[dispatch.source, dispatch.micro_batch]
