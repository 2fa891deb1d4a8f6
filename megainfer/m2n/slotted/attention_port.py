"""The attention node's end of M2N over shared slots."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.m2n.mailbox import Arrival, Handle, Part
from megainfer.m2n.message import Header, Kind
from megainfer.m2n.roads import Seat
from megainfer.m2n.slotted.mail import AttentionMail
from megainfer.m2n.slotted.port import SlotPort, Wire
from megainfer.m2n.slotted.slots import torch_dtype

_INCARNATION_BITS = 40
"""A node that sends a million messages a second in a micro-batch counts as far in 12 days."""


@dataclass(slots=True)
class _Due:
    """What peers may answer to the last dispatch of a micro-batch, until it is combined or the
    epoch ends: by this alone they are judged, whatever the node believes."""

    handle: Handle
    sequence: int
    outstanding: set[int]  # expert nodes that have yet to reply
    failed: set[int] = field(default_factory=set)  # expert nodes that replied with an error


class SlotAttentionPort(SlotPort[AttentionMail]):
    """`mailbox.AttentionPort`: dispatch slots are in the expert nodes' memory, replies in ours."""

    def __init__(
        self, seat: Seat, mail: AttentionMail, wire: Wire, met: Collection[int] | None = None
    ) -> None:
        everybody = range(seat.geometry.num_expert)
        super().__init__(seat, mail, wire, everybody if met is None else met)
        self._dtype = torch_dtype(seat.geometry)
        # Greater than any of its predecessors', whose messages may still stand in slots.
        self._sequences = [seat.incarnation << _INCARNATION_BITS] * seat.geometry.micro_batches
        self._due: dict[int, _Due] = {}

    def dispatch(
        self, micro_batch: int, layer: int, hidden: Tensor, parts: Sequence[Part]
    ) -> Handle:
        """See `mailbox.AttentionPort.dispatch`."""
        self._check_free(micro_batch)
        self._check_hidden(hidden)
        self._check_parts(parts)
        parts = tuple(parts)
        sequence = self._next_sequence(micro_batch)
        self._mail.dispatch(micro_batch, layer, sequence, hidden, parts)
        self._ring(self._members)
        # What the books need is made when the message is on its way.
        awaiting = frozenset([node for node, part in enumerate(parts) if part.rows.numel()])
        handle = Handle(micro_batch, layer, parts, awaiting)
        self._due[micro_batch] = _Due(handle, sequence, set(awaiting))
        return handle

    def poll(self) -> list[Arrival]:
        """See `mailbox.AttentionPort.poll`."""
        return [self._arrive(header) for _, header in self._scan()]

    def combine(self, handle: Handle, out: Tensor) -> None:
        """See `mailbox.AttentionPort.combine`."""
        self.check_complete(handle)
        self._mail.combine(handle.micro_batch, handle.parts, out)
        self.forget(handle)

    def add_replies(self, handle: Handle, nodes: Collection[int], out: Tensor) -> None:
        """Of what `combine` adds, that of these expert nodes; handle: one that is complete."""
        parts = [part if n in nodes else part.blank() for n, part in enumerate(handle.parts)]
        self._mail.combine(handle.micro_batch, parts, out)

    def forget(self, handle: Handle) -> None:
        """All of its replies were added."""
        del self._due[handle.micro_batch]

    def rest(self, micro_batch: int) -> None:
        """See `mailbox.AttentionPort.rest`."""
        self._check_free(micro_batch)
        self._mail.rest(micro_batch, self._next_sequence(micro_batch))
        self._ring(self._members)

    def _abandon(self) -> None:
        self._due.clear()

    def _next_sequence(self, micro_batch: int) -> int:
        self._sequences[micro_batch] += 1
        return self._sequences[micro_batch]

    def _arrive(self, header: Header) -> Arrival:
        due = _checked(header, self._due.get(header.micro_batch))
        due.outstanding.remove(header.source)
        error = None
        if header.kind == Kind.ERROR:
            due.failed.add(header.source)
            error = self._mail.error_text(header)
        return Arrival(header.micro_batch, header.layer, header.source, error)

    def _check_free(self, micro_batch: int) -> None:
        if not 0 <= micro_batch < self._geometry.micro_batches:
            count = self._geometry.micro_batches
            raise ProtocolError(f"micro-batch {micro_batch}, there are {count}")
        due = self._due.get(micro_batch)
        if due is not None and due.outstanding:
            raise ProtocolError(
                f"micro-batch {micro_batch} still waits for expert nodes "
                f"{sorted(due.outstanding)} at layer {due.handle.layer}"
            )

    def _check_hidden(self, hidden: Tensor) -> None:
        size, dtype = self._geometry.hidden_size, self._dtype
        if hidden.ndim != 2 or hidden.shape[1] != size or hidden.dtype != dtype:
            raise ProtocolError(
                f"hidden is {list(hidden.shape)} {hidden.dtype}, agreed was [T, {size}] {dtype}"
            )

    def _check_parts(self, parts: Sequence[Part]) -> None:
        geometry = self._geometry
        if len(parts) > geometry.num_expert:
            raise ProtocolError(f"{len(parts)} parts for {geometry.num_expert} expert nodes")
        if without := [node for node in self._members if node >= len(parts)]:
            raise ProtocolError(f"{len(parts)} parts, none for expert nodes {sorted(without)}")
        for node, part in enumerate(parts):
            rows = part.rows.numel()
            if rows > geometry.capacity:
                raise ProtocolError(
                    f"{rows} rows for expert node {node}, a slot's capacity is {geometry.capacity}"
                )
            choices = (rows, geometry.top_k)
            if part.local_ids.shape != choices or part.weights.shape != choices:
                raise ProtocolError(
                    f"local ids {list(part.local_ids.shape)} and weights "
                    f"{list(part.weights.shape)} for expert node {node}, not {list(choices)}"
                )
            if rows and node not in self._members:
                raise ProtocolError(
                    f"{rows} rows for expert node {node}, which is no member of epoch {self._epoch}"
                )

    def check_complete(self, handle: Handle) -> None:
        """Raises ProtocolError unless all replies have come to this dispatch, the latest of its
        micro-batch."""
        due = self._due.get(handle.micro_batch)
        if due is None or due.handle is not handle:
            where = f"layer {handle.layer} of micro-batch {handle.micro_batch}"
            raise ProtocolError(f"{where} is not in flight (any more), so it cannot be combined")
        if due.outstanding or due.failed:
            raise ProtocolError(
                f"layer {handle.layer} of micro-batch {handle.micro_batch} cannot be combined: "
                f"expert nodes {sorted(due.outstanding)} have not replied, {sorted(due.failed)} "
                "have failed"
            )


def _checked(header: Header, due: _Due | None) -> _Due:
    """`due`, of the micro-batch. Raises ProtocolError unless the reply `header` is owed."""
    if due is None or header.source not in due.outstanding:
        raise ProtocolError(f"{_who(header)} answers where no reply is due")
    sent = (due.sequence, due.handle.layer)
    if (header.sequence, header.layer) != sent:
        raise ProtocolError(
            f"{_who(header)} answers message {header.sequence} of layer {header.layer}, in flight "
            f"is message {sent[0]} of layer {sent[1]}"
        )
    rows = due.handle.parts[header.source].rows.numel()
    if header.kind == Kind.REPLY and header.rows != rows:
        raise ProtocolError(f"{_who(header)} replies with {header.rows} rows, it was sent {rows}")
    return due


def _who(header: Header) -> str:
    return f"expert node {header.source}, micro-batch {header.micro_batch}"
