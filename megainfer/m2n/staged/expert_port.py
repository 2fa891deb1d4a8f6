"""An expert node on a device, over a road of the host."""

from collections import deque
from typing import NamedTuple

from torch import Tensor

from megainfer.device import Device, Readback
from megainfer.m2n.mailbox import Dispatch, ExpertPort, Rest
from megainfer.m2n.staged.port import StagedPort

_Key = tuple[int, int, int]
"""Source, micro-batch, sequence."""


class _Answer(NamedTuple):
    """dispatch: as it stands in the host's slot."""

    dispatch: Dispatch
    values: Readback


class StagedExpertPort(StagedPort[ExpertPort]):
    """`mailbox.ExpertPort`: what arrives is copied to the device, and replies are copied back."""

    def __init__(self, port: ExpertPort, device: Device) -> None:
        super().__init__(port, device)
        self.address = port.address
        self._arrived: dict[tuple[int, int], Dispatch] = {}  # by source and micro-batch
        self._outs: dict[_Key, Tensor] = {}
        self._answers = deque[_Answer]()  # in the order of the work that fills them

    def receive(self) -> list[Dispatch | Rest]:
        """See `mailbox.ExpertPort.receive`."""
        self._send()
        return [
            message if isinstance(message, Rest) else self._brought(message)
            for message in self._port.receive()
        ]

    def reply_buffer(self, dispatch: Dispatch) -> Tensor:
        """See `mailbox.ExpertPort.reply_buffer`."""
        out = self.device.empty(dispatch.hidden.shape, dispatch.hidden.dtype)
        self._outs[_key(dispatch)] = out
        return out

    def reply(self, dispatch: Dispatch) -> None:
        """See `mailbox.ExpertPort.reply`."""
        out = self._outs.pop(_key(dispatch))
        self._answers.append(_Answer(self._in_slot(dispatch), self.device.read_back(out)))
        self._send()

    def reply_error(self, dispatch: Dispatch, message: str) -> None:
        """See `mailbox.ExpertPort.reply_error`."""
        self._outs.pop(_key(dispatch), None)
        self._port.reply_error(self._in_slot(dispatch), message)

    def _leaving(self) -> bool:
        return bool(self._answers)

    def _brought(self, message: Dispatch) -> Dispatch:
        if not message.num_rows:
            return message
        self._arrived[message.source, message.micro_batch] = message
        upload = self.device.upload
        return message._replace(
            hidden=upload(message.hidden),
            local_ids=upload(message.local_ids),
            weights=upload(message.weights),
        )

    def _in_slot(self, dispatch: Dispatch) -> Dispatch:
        """The same message on the host, of which its port knows whether a reply is still due."""
        arrived = self._arrived.get((dispatch.source, dispatch.micro_batch), dispatch)
        return arrived if arrived.sequence == dispatch.sequence else dispatch

    def _send(self) -> None:
        """What the device has filled."""
        while self._answers and self._answers[0].values.done():
            dispatch, values = self._answers.popleft()
            self._port.reply_buffer(dispatch).copy_(values.take())
            self._port.reply(dispatch)


def _key(dispatch: Dispatch) -> _Key:
    return dispatch.source, dispatch.micro_batch, dispatch.sequence
