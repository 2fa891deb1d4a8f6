"""An attention node on a device, over a road of the host."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.device import Device, Readback
from megainfer.errors import ProtocolError
from megainfer.m2n.mailbox import Arrival, Handle, JoiningPort, Part
from megainfer.m2n.staged.port import StagedPort


class _PartReadback(NamedTuple):
    """A part on its way to the host. counted: its `Part.count`."""

    rows: Readback
    local_ids: Readback
    weights: Readback
    counted: Readback | None

    def take(self) -> Part:
        """The rows that count."""
        count = None if self.counted is None else int(self.counted.take())
        rows, ids, weights = (values.take()[:count] for values in self[:3])
        return Part(rows, ids, weights)


@dataclass(slots=True)
class _Away:
    """The last dispatch of a micro-batch.

    handle: what the node holds of it. hidden, parts: being read back. sent: what the host's port
    gave for it, None before. owed: expert nodes of which the node has yet to hear.
    """

    handle: Handle
    hidden: Readback
    parts: tuple[_PartReadback, ...]
    owed: set[int]
    sent: Handle | None = None

    def there(self) -> bool:
        """Whether the host has all of it; never blocks."""
        every = (self.hidden, *(values for part in self.parts for values in part if values))
        return all(values.done() for values in every)


class StagedAttentionPort(StagedPort[JoiningPort]):
    """`mailbox.JoiningPort`.

    Sums of replies are rounded once, when they are added to what is on the device.
    """

    def __init__(self, port: JoiningPort, device: Device) -> None:
        super().__init__(port, device)
        self._away: dict[int, _Away] = {}  # by micro-batch
        self._epoch: int | None = None

    def dispatch(
        self, micro_batch: int, layer: int, hidden: Tensor, parts: Sequence[Part]
    ) -> Handle:
        """See `mailbox.AttentionPort.dispatch`. What is wrong with a message that the device has
        yet to fill is raised by `poll`."""
        self._check_free(micro_batch)
        awaiting = frozenset(node for node, part in enumerate(parts) if part.rows.numel())
        handle = Handle(micro_batch, layer, tuple(parts), awaiting)
        read = self.device.read_back
        self._away[micro_batch] = _Away(
            handle, read(hidden), tuple(self._read_back(part) for part in parts), set(awaiting)
        )
        return handle

    def poll(self) -> list[Arrival]:
        """See `mailbox.AttentionPort.poll`."""
        arrivals = [arrival for away in self._ready() for arrival in self._send(away)]
        arrivals += self._port.poll()
        for arrival in arrivals:
            self._away[arrival.micro_batch].owed.discard(arrival.expert_node)
        return arrivals

    def combine(self, handle: Handle, out: Tensor) -> None:
        """See `mailbox.AttentionPort.combine`."""
        away = self._away.get(handle.micro_batch)
        if away is None or away.handle is not handle or away.sent is None:
            raise ProtocolError(
                f"layer {handle.layer} of micro-batch {handle.micro_batch} cannot be combined: it "
                "is not in flight (any more), or has yet to be sent"
            )
        sums = torch.zeros(out.shape, dtype=torch.float32)
        self._port.combine(away.sent, sums)
        del self._away[handle.micro_batch]
        out.add_(self.device.upload(sums.to(out.dtype)))

    def rest(self, micro_batch: int) -> None:
        """See `mailbox.AttentionPort.rest`."""
        self._check_free(micro_batch)
        self._port.rest(micro_batch)

    def meet(
        self,
        expert: int,
        incarnation: int,
        timeout: float,
        on_met: Callable[[], None],
        address: tuple[str, int] | None = None,
    ) -> None:
        """See `mailbox.JoiningPort.meet`."""
        self._port.meet(expert, incarnation, timeout, on_met, address)

    def set_epoch(self, epoch: int, members: Collection[int] | None = None) -> None:
        """See `mailbox.Port.set_epoch`."""
        super().set_epoch(epoch, members)
        if epoch != self._epoch:
            self._epoch = epoch
            self._away.clear()

    def _leaving(self) -> bool:
        return any(away.sent is None for away in self._away.values())

    def _check_free(self, micro_batch: int) -> None:
        away = self._away.get(micro_batch)
        if away is not None and away.owed:
            raise ProtocolError(
                f"micro-batch {micro_batch} still waits for expert nodes {sorted(away.owed)} at "
                f"layer {away.handle.layer}"
            )

    def _ready(self) -> list[_Away]:
        """What was read back and not sent."""
        return [away for away in self._away.values() if away.sent is None and away.there()]

    def _send(self, away: _Away) -> list[Arrival]:
        """Nodes that the device has no rows for reply nothing, but are awaited."""
        micro_batch, layer, _, awaiting = away.handle
        parts = [part.take() for part in away.parts]
        away.sent = self._port.dispatch(micro_batch, layer, away.hidden.take(), parts)
        return [Arrival(micro_batch, layer, node) for node in awaiting - away.sent.awaiting]

    def _read_back(self, part: Part) -> _PartReadback:
        read = self.device.read_back
        count = None if part.count is None else read(part.count)
        return _PartReadback(read(part.rows), read(part.local_ids), read(part.weights), count)
