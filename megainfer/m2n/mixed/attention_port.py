"""An attention node's end whose expert nodes are near or far."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.m2n.dist.ports import DistAttentionPort
from megainfer.m2n.host.ports import HostAttentionPort
from megainfer.m2n.mailbox import Arrival, Handle, Part
from megainfer.m2n.mixed.port import MixedPort


class _Flight(NamedTuple):
    """A dispatch as a whole, and what each road has of it."""

    whole: Handle
    near: Handle
    far: Handle


class MixedAttentionPort(MixedPort[HostAttentionPort | DistAttentionPort]):
    """`mailbox.JoiningPort`: whoever is met without an address is near."""

    def __init__(self, near: HostAttentionPort, far: DistAttentionPort) -> None:
        super().__init__(near, far)
        self._flights: dict[int, _Flight] = {}

    def meet(
        self,
        expert: int,
        incarnation: int,
        timeout: float,
        on_met: Callable[[], None],
        address: tuple[str, int] | None = None,
    ) -> None:
        """See `mailbox.JoiningPort.meet`."""
        port = self._near if address is None else self._far
        port.meet(expert, incarnation, timeout, on_met, address)

    def dispatch(
        self, micro_batch: int, layer: int, hidden: Tensor, parts: Sequence[Part]
    ) -> Handle:
        """See `mailbox.AttentionPort.dispatch`. What goes far is sent first: it takes longer."""
        parts = tuple(parts)
        near, far = self._dealt(parts)
        there = self._far.dispatch(micro_batch, layer, hidden, far)
        here = self._near.dispatch(micro_batch, layer, hidden, near)
        whole = Handle(micro_batch, layer, parts, here.awaiting | there.awaiting)
        self._flights[micro_batch] = _Flight(whole, here, there)
        return whole

    def poll(self) -> list[Arrival]:
        """See `mailbox.AttentionPort.poll`."""
        return [*self._near.poll(), *self._far.poll()]

    def combine(self, handle: Handle, out: Tensor) -> None:
        """See `mailbox.AttentionPort.combine`: in the order of expert nodes, road by road as it
        comes."""
        flight = self._flights.get(handle.micro_batch)
        if flight is None or flight.whole is not handle:
            where = f"layer {handle.layer} of micro-batch {handle.micro_batch}"
            raise ProtocolError(f"{where} is not in flight (any more), so it cannot be combined")
        own = {self._near: flight.near, self._far: flight.far}
        for port, part in own.items():
            port.check_complete(part)
        for port, nodes in groupby(sorted(handle.awaiting), self._road_to):
            port.add_replies(own[port], frozenset(nodes), out)
        for port, part in own.items():
            port.forget(part)
        del self._flights[handle.micro_batch]

    def rest(self, micro_batch: int) -> None:
        """See `mailbox.AttentionPort.rest`."""
        self._near.rest(micro_batch)
        self._far.rest(micro_batch)

    def _road_to(self, expert: int) -> HostAttentionPort | DistAttentionPort:
        return self._on.get(expert, self._near)

    def _dealt(self, parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
        """Of each road, with blanks for the other's; rows for one that was never met are the near
        port's to refuse."""
        near, far = list(parts), list(parts)
        for expert, part in enumerate(parts):
            blanks = near if self._road_to(expert) is self._far else far
            blanks[expert] = part.blank()
        return near, far
